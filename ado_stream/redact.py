"""Removes credentials from text: from errors, the record, metric sinks and reprs.

Redacted: user information in URLs, values of signatures, keys and tokens in queries (both also in URLs that are
percent-encoded as a whole), in fragments and in headers, and what the environment holds as a secret, wherever it
occurs.
"""

import math
import os
import re
import urllib.parse
from collections.abc import Iterator
from typing import Any

_NAMES = r"(?:sig|token|secret|passw|pwd|credential|key|hmac|auth)"  # parts of a parameter's name
# Repetitions that may begin anywhere have a bound: else the time for a long text would be its square.
_PLACES = (
    # of a user whose password has slashes; what begins with digits and a slash is a port
    (re.compile(r"(://)[^\s/:@?#'\"\[]{1,200}:(?!\d{1,5}(?:[/?#\s'\"]|$))[^\s@?#'\"]{0,500}@"), "***@"),
    (re.compile(r"(:(?:\\?/){1,2})[^\s/?#]*@"), "***@"),  # one slash: of a URL that was taken for a path
    (re.compile(r"(%3A%2F%2F)(?:(?!%2F)[^\s/?#&])*%40", re.IGNORECASE), "***%40"),
    (re.compile(rf"([?&;#][^\s=&#]{{0,80}}{_NAMES}[^\s=&#]{{0,80}}=)[^\s&#'\"<>]+", re.IGNORECASE), "***"),
    (
        re.compile(
            rf"(%(?:3F|26|23)(?:(?!%3D|%26)[^\s=&]){{0,80}}{_NAMES}(?:(?!%3D|%26)[^\s=&]){{0,80}}%3D)(?:(?!%26)[^\s&#'\"<>])+",
            re.IGNORECASE,
        ),
        "***",
    ),
    (
        re.compile(r"(authorization['\"]?\s*[:=]\s*b?['\"]?(?:basic|bearer|token|apikey)\s+)[^\s'\",]+", re.IGNORECASE),
        "***",
    ),
    (  # fields of headers, of AWS and of Azure
        re.compile(
            r"(\b(?:(?:x-[a-z-]{0,40}(?:token|key)|aws_secret_access_key)['\"]?\s*[:=]\s*b?['\"]?"
            r"|(?:AccountKey|SharedAccessKey|SharedAccessSignature|Credential|Signature)=))[^\s'\",;&<>]+",
            re.IGNORECASE,
        ),
        "***",
    ),
)
_SECRET_NAME = re.compile(
    r"(?!.*(_FILE|_PATH|_DIR|APPLICATION_CREDENTIALS)$).*(SECRET|PASSW|PASSPHRASE|CREDENTIAL|CONNECTION_STRING"
    r"|(API|ACCESS|PRIVATE|STORAGE|ACCOUNT|SHARED|HMAC|GCS)_?KEY|(^|_)(TOKEN|PASS)(_|$)"
    r"|_(KEY|PWD)$|(^|_)(PAT|JWT|AUTH|BEARER|SAS|COOKIE|WEBHOOK|WEBHOOK_URL|KEY_CONTENT)$)",
    re.IGNORECASE,
)
_FIELD = re.compile(r"(?:key|signature|password|pwd)=([^;\s]+)", re.IGNORECASE)  # of a connection string
_USER = re.compile(r"(?:://([^\s/:@]*:(\S+))|^([^\s/:@]+:([^\s/]+)))@")  # a proxy needs no scheme; a path is none
_MIN_SECRET_CHARACTERS = 8  # a shorter one, "test" for instance, may be an ordinary word


def redact(text: str) -> str:
    """`text` with *** in place of credentials; other text is unchanged."""
    for secret in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(secret, "***")
    for place, end in _PLACES:
        text = place.sub(rf"\1{end}", text)
    return text


def plain(value: object) -> Any:
    """`value` in JSON's types, without credentials: arrays to lists, NaN and infinities to null."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {redact(str(key)): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def without_user(text: str, url: str) -> str:
    """`text`, in which a client may quote parts of `url`, without the user information of that URL."""
    user = url.partition("://")[2].partition("/")[0].rpartition("@")[0]
    for secret in filter(None, (user, user.partition(":")[2])):
        text = text.replace(secret, "***").replace(urllib.parse.unquote(secret), "***")
    return text


def _secrets() -> Iterator[str]:
    """Values of the environment that are secrets, and passwords of URLs in it."""
    for name, value in os.environ.items():
        found = [value] if _SECRET_NAME.match(name) else []
        found += _FIELD.findall(value)
        users = [part for user in _USER.finditer(value) for part in user.groups() if part]
        found += [spelling for part in users for spelling in (part, urllib.parse.unquote(part))]
        for secret in found:
            if len(secret) >= _MIN_SECRET_CHARACTERS:
                yield from (secret, urllib.parse.quote(secret, safe=""))

"""Folder names for domains: any text to one plain path component, never two domains to one folder."""

import re

import xxhash

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_OTHER = re.compile(r"[^A-Za-z0-9._-]+")
_RESERVED = re.compile(r"(corpus|tokenizer|tokenizer_config)\.json", re.IGNORECASE)


def folder_of(domain: str) -> str:
    """`domain` itself where it is a plain name, else what is plain of it and a hash of all of it.

    "Pile-CC" stays; "Wikipedia (en)" becomes "Wikipedia_en-" and eight hexadecimal digits.
    """
    if _PLAIN.fullmatch(domain) and not _RESERVED.fullmatch(domain):
        return domain
    plain = _OTHER.sub("_", domain).strip("._-")[:60]
    mark = xxhash.xxh64_hexdigest(domain.encode())[:8]
    return f"{plain}-{mark}" if plain else mark

"""docs/faults.md H3: credentials in URLs and in the environment reach no message, traceback, record, log or sink."""

import json
import logging
import os
import pickle
import subprocess
import sys
import time
import traceback
import types
import urllib.parse
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ado_stream as ado
from ado_stream.cli.main import main
from ado_stream.errors import ConfigError, StorageError
from ado_stream.prepare.corpus_output import RemoteOutput
from ado_stream.record import FILE_NAME, RunRecord
from ado_stream.redact import redact
from ado_stream.storage import download as download_module
from ado_stream.storage.download import download_bytes
from ado_stream.storage.node_cache import NodeCache
from ado_stream.storage.object_spec import ObjectSpec
from ado_stream.storage.retry import RetryPolicy
from ado_stream.storage.slow_notice import remote_text
from ado_stream.stream.domain import as_domains
from ado_stream.train import metric_sinks
from ado_stream.train.changed_settings import changed_settings, saved_settings
from ado_stream.train.run_config import load_config
from ado_stream.train.train_step import LearningRateSchedule
from ado_stream.visible import show_json, visible

ONCE = RetryPolicy(attempts=1, read_timeout_s=5.0)
SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "AWS_SESSION_TOKEN": "IQoJb3JpZ2luX2VjEPT+EXAMPLE==",
    "HF_TOKEN": "hf_abcdefghijklmnop",
    "WANDB_API_KEY": "0123456789abcdef0123",
    "AZURE_STORAGE_KEY": "c3RvcmFnZSBrZXk+/w==",
    "AZURE_STORAGE_CONNECTION_STRING": "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=Y29ubmVjdGlvbg==",
    "OCI_PASSPHRASE": "correct horse battery",
    "SFTP_PASS": "staple-staple",
    "SFTP_PASSWORD": "staple-of-a-horse",
    "APP_SECRET": "known-to-two-alone",
    "GCS_KEY": "GOOG1EXAMPLEKEYID",
    "STORE_HMAC_KEY": "hmac-of-a-store",
    "MY_ACCOUNT_KEY": "an-accounts-key",
    "SHARED_KEY": "shared-by-two-hosts",
    "SSH_PRIVATE_KEY": "-----BEGIN-----x",
    "STORE_CREDENTIALS": "user-and-password",
}
PASSWORD = "p@ss%2Fword:one"  # as written in the URL; its spellings below must not appear either
LEAKS = (*SECRETS.values(), PASSWORD, urllib.parse.unquote(PASSWORD), "ss%2Fword", "ss/word", "some-user")
LEAKS += ("Y29ubmVjdGlvbg==", *(urllib.parse.quote(value, safe="") for value in SECRETS.values()))


@pytest.fixture
def secrets(monkeypatch):
    """An environment of secrets, and an endpoint that nobody listens on."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("S3_ENDPOINT_URL", f"http://some-user:{PASSWORD}@127.0.0.1:9")
    monkeypatch.setenv("HTTPS_PROXY", f"http://some-user:{PASSWORD}@127.0.0.1:9")


def leaks(text: str) -> list[str]:
    return [leak for leak in LEAKS if leak in text]


def test_a_client_may_quote_the_user_of_a_url_alone(secrets):
    """botocore does, of a bucket: all between :// and the next slash. No bucket can be called so: one attempt."""
    with pytest.raises(StorageError, match=r"Invalid bucket name .*1 attempt in") as caught:
        download_bytes(f"s3://some-user:{PASSWORD}@bucket/x")
    assert not leaks(str(caught.value))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sftp://user:password@host/a/b.mds: gone", "sftp://***@host/a/b.mds: gone"),
        ("http://user:p%40ss%2Fword@host:9000/", "http://***@host:9000/"),
        ("http://user:p@ss@host", "http://***@host"),
        ("https:/user:p@ss@host/x.jsonl: no such file", "https:/***@host/x.jsonl: no such file"),
        ("to=http%3A%2F%2Fuser%3Apass%40host%2Fx", "to=http%3A%2F%2F***%40host%2Fx"),
        ("https://h/k?X-Amz-Date=1&X-Amz-Signature=ab12&b=2", "https://h/k?X-Amz-Date=1&X-Amz-Signature=***&b=2"),
        (
            "https://h/k?X-Amz-Credential=AK%2F2&x-amz-security-token=t",
            "https://h/k?X-Amz-Credential=***&x-amz-security-token=***",
        ),
        ("https://h/k?sv=2020&sig=a%2Bb%3D", "https://h/k?sv=2020&sig=***"),
        ("https://h/k?pwd=abc&x-hmac=1f", "https://h/k?pwd=***&x-hmac=***"),
        ("{'Authorization': 'Basic dXNlcjpw'}, host: basic text", "{'Authorization': 'Basic ***'}, host: basic text"),
        ("https://h/k?AWSAccessKeyId=AK&Signature=x", "https://h/k?AWSAccessKeyId=***&Signature=***"),
        ("s3://AKIA:sec/ret/x@bucket/k", "s3://***@bucket/k"),
        ('"https:\\/\\/user:pass@host\\/x"', '"https:\\/\\/***@host\\/x"'),
        ("to=https%3A%2F%2Fh%3FX-Amz-Signature%3Dab12%26b%3D2", "to=https%3A%2F%2Fh%3FX-Amz-Signature%3D***%26b%3D2"),
        ("https://h/k#access_token=ab12&b=2", "https://h/k#access_token=***&b=2"),
        ("x-amz-security-token: ab12, {'X-Api-Key': b'ab12'}", "x-amz-security-token: ***, {'X-Api-Key': b'***'}"),
        ("authorization: AWS4 Credential=AK/s3, Signature=1f", "authorization: AWS4 Credential=***, Signature=***"),
        ("AccountKey=YQ==;x", "AccountKey=***;x"),
        ("http://host:9000/a@b/c", "http://host:9000/a@b/c"),
        ("eos_token: x, --text-key key=text", "eos_token: x, --text-key key=text"),
        ("s3://bucket/a@b/c?d=e: HTTP 503", "s3://bucket/a@b/c?d=e: HTTP 503"),
        ("mail a@b.c, 1 < 2; key = value", "mail a@b.c, 1 < 2; key = value"),
    ],
)
def test_what_is_redacted_and_what_is_not(text, expected):
    assert redact(text) == expected
    assert redact(expected) == expected
    assert str(ado.StorageError(text)) == expected
    assert visible(text) == expected


@given(user=st.text(min_size=1), password=st.text(min_size=4), path=st.text("abc/@", max_size=9))
def test_no_quoted_password_is_left(user, password, path):
    quote = urllib.parse.quote
    url = f"https://{quote(user, safe='')}:{quote(password, safe='')}@host/{path}"
    assert redact(url) == f"https://***@host/{path}"
    assert redact(quote(url, safe="")) == quote(f"https://***@host/{path}", safe="*")


def test_secrets_of_the_environment_are_redacted_wherever_they_occur(secrets):
    for secret in (*SECRETS.values(), "Y29ubmVjdGlvbg==", urllib.parse.unquote(PASSWORD)):
        for spelled in (secret, urllib.parse.quote(secret, safe="")):
            assert redact(f"refused: {spelled}, try again") == "refused: ***, try again"
    for name, value in os.environ.items():  # paths and settings are no secrets
        if name in ("PATH", "HOME", "TOKENIZERS_PARALLELISM"):
            assert redact(value) == value


@pytest.mark.parametrize("text", ["?" + "key" * 100_000, "://a:" * 60_000, "x-" * 100_000, "%3Fkey" * 10_000])
def test_the_time_for_a_text_does_not_grow_with_its_square(text):
    """A preview shows what is in a shard, a report what is in a record. The square would take minutes."""
    began = time.process_time()
    assert redact(text) == text
    assert time.process_time() - began < 10


@pytest.mark.parametrize("name", ["AZURE_KEY", "DB_PWD", "GH_PAT", "NPM_AUTH", "JWT", "STORE_SAS", "SLACK_WEBHOOK_URL"])
def test_any_usual_name_of_a_secret_is_known(monkeypatch, name):
    monkeypatch.setenv(name, "known-to-two-alone")
    assert redact("refused: known-to-two-alone.") == "refused: ***."


def test_a_search_path_is_no_user(monkeypatch):
    for value in (":/opt/packages/python@3.11/lib", "packages:/opt/packages/gcc@12/lib"):
        monkeypatch.setenv("PYTHONPATH", value)
        for text in ("/opt/packages/python: no such folder.", "/opt/packages/gcc: no such folder."):
            assert redact(text) == text


@pytest.mark.parametrize("name", ["S3_ENDPOINT_URL", "HTTPS_PROXY", "all_proxy"])
def test_the_user_of_a_proxy_without_a_scheme_is_redacted(monkeypatch, name):
    monkeypatch.setenv(name, f"some-user:{PASSWORD}@127.0.0.1:9")
    for spelled in (PASSWORD, urllib.parse.unquote(PASSWORD)):
        assert redact(f"Invalid endpoint: some-user:{spelled}@127.0.0.1:9") == "Invalid endpoint: ***@127.0.0.1:9"
        assert redact(f"refused {spelled}.") == "refused ***."


def test_a_file_that_holds_credentials_may_be_named(monkeypatch):
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/home/me/.aws/credentials")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/home/me/google.json")
    text = "/home/me/.aws/credentials and /home/me/google.json"
    assert redact(text) == text


SCRIPT = """
import sys
from ado_stream.storage.download import download_bytes
from ado_stream.storage.retry import RetryPolicy
download_bytes("s3://bucket/index.json", RetryPolicy(attempts=1, read_timeout_s=5.0))
"""


@pytest.mark.parametrize("variable", ["S3_ENDPOINT_URL", "AWS_ENDPOINT_URL", "HTTP_PROXY"])
def test_a_traceback_of_an_unreachable_store_holds_no_credentials(secrets, monkeypatch, variable):
    endpoint = os.environ["S3_ENDPOINT_URL"]
    for name in ("S3_ENDPOINT_URL", "HTTPS_PROXY"):
        monkeypatch.delenv(name)
    if variable == "HTTP_PROXY":
        monkeypatch.setenv("S3_ENDPOINT_URL", "http://store.invalid")
    monkeypatch.setenv(variable, endpoint)
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert "ado_stream.errors.StorageError: s3://bucket/index.json: " in run.stderr
    assert leaks(run.stderr) == []


@pytest.mark.parametrize("host", ["ho st", "[::1"])
def test_an_endpoint_that_is_no_url_is_a_config_error_without_credentials(secrets, monkeypatch, host):
    monkeypatch.setenv("S3_ENDPOINT_URL", f"http://some-user:{PASSWORD}@{host}")
    with pytest.raises(ConfigError, match="S3_ENDPOINT_URL") as caught:
        ado.open_corpus("s3://bucket/corpus")
    assert leaks(str(caught.value)) == []


def test_the_clients_of_other_stores_are_not_quoted(secrets, monkeypatch, tmp_path):
    url = f"sftp://some-user:{PASSWORD}@127.0.0.1/data"

    class Downloader:
        def download(self, remote, local, timeout):
            raise OSError(f"cannot reach {remote} with {SECRETS['HF_TOKEN']}")

    monkeypatch.setattr(download_module, "_streaming_downloader", lambda _: Downloader())
    with pytest.raises(StorageError) as caught:
        download_bytes(f"{url}/index.json", ONCE)
    text = "".join(traceback.format_exception(caught.value))
    assert "sftp://***@127.0.0.1/data/index.json" in text
    assert leaks(text) == []
    domain = ado.Domain("a", url, str(tmp_path))
    assert repr(domain) == f"Domain(name='a', remote='sftp://***@127.0.0.1/data', local='{tmp_path}')"
    assert domain.remote == url  # what is used is whole


def test_a_warning_and_a_notice_hold_no_credentials(secrets, tmp_path, caplog):
    url = f"sftp://some-user:{PASSWORD}@127.0.0.1/data/a.mds"
    spec = ObjectSpec("a.mds", url, tmp_path / "a.mds", tmp_path / "a.mds", raw_bytes=3)
    (tmp_path / "a.mds").write_bytes(b"abc")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        NodeCache().fetch(spec)
    assert any("no hashes" in str(each.message) for each in seen)
    with caplog.at_level(logging.WARNING):
        logging.getLogger("ado_stream").warning("waiting for %s", remote_text(url))
    assert leaks(caplog.text + "".join(str(each.message) for each in seen)) == []


def test_record_and_sinks_get_no_credentials(secrets, tmp_path, monkeypatch):
    config = {"corpus": os.environ["S3_ENDPOINT_URL"], "log": [SECRETS["HF_TOKEN"], 1, None], "lr": 0.1}
    with RunRecord(tmp_path) as record:
        record.write("run", corpus={"path": config["corpus"]}, options=config)
    assert leaks((tmp_path / FILE_NAME).read_text()) == []
    seen = {}

    class Wandb:
        def init(self, **options):
            seen.update(options)
            return self

        def define_metric(self, *_, **__):
            pass

    monkeypatch.setitem(sys.modules, "wandb", Wandb())
    metric_sinks.WandbSink(tmp_path, "id", config)
    assert seen["config"] == {"corpus": "http://***@127.0.0.1:9", "log": ["***", 1, None], "lr": 0.1}


@pytest.mark.parametrize("call", ["check_writable", "publish"])
def test_an_upload_that_fails_does_not_quote_the_user_of_its_url(tmp_path, monkeypatch, call):
    class Uploader:
        @staticmethod
        def get(*_, **__):
            if call == "check_writable":
                raise ValueError(f'Invalid bucket name "some-user:{PASSWORD}@bucket"')
            return Uploader()

        def upload_file(self, name):
            raise ValueError(f'Invalid bucket name "some-user:{PASSWORD}@bucket"')

    monkeypatch.setattr("streaming.base.storage.upload.CloudUploader", Uploader)
    with pytest.raises(StorageError, match="Invalid bucket name") as caught:
        getattr(RemoteOutput(f"s3://some-user:{PASSWORD}@bucket/x", tmp_path), call)(
            *(["a"] if call == "publish" else [])
        )
    assert leaks(str(caught.value)) == []
    assert caught.value.__suppress_context__


def test_json_has_no_credentials_but_every_text(secrets, capsys):
    url = os.environ["S3_ENDPOINT_URL"]
    show_json({url: [{"path": url}, 1.5, None]}, text=f"a document about {url}")
    assert json.loads(capsys.readouterr().out) == {
        "http://***@127.0.0.1:9": [{"path": "http://***@127.0.0.1:9"}, 1.5, None],
        "text": f"a document about {url}",
    }


def test_a_checkpoint_has_no_credentials_and_nothing_changed_at_its_resume(secrets):
    config = load_config({"corpus": f"sftp://some-user:{PASSWORD}@host/corpus", "run_dir": "run"})
    dataset = types.SimpleNamespace(names=["a"], prior=np.ones(1))
    components = types.SimpleNamespace(
        loader=types.SimpleNamespace(dataset=dataset),
        corpus=types.SimpleNamespace(end_token=256, manifest={"domains": {"a": {"fingerprint": "01"}}}),
        schedule=LearningRateSchedule(1e-3, 10, 100, 0.1),
    )
    settings = saved_settings(config, components, types.SimpleNamespace(size=1, device=torch.device("cpu")))
    assert settings["config"]["corpus"] == "sftp://***@host/corpus"
    assert not changed_settings(json.loads(json.dumps(settings)), ["a"], settings, ["a"], 1)


def test_a_domain_has_no_credentials_in_its_name():
    stream = types.SimpleNamespace(remote=f"sftp://some-user:{PASSWORD}@host", local="/cache")
    assert [each.name for each in as_domains([stream])] == ["***@host"]
    stream.remote = "https://host/wiki?sig=c2VjcmV0"
    assert [each.name for each in as_domains([stream])] == ["wiki?sig=***"]


def test_the_command_line_prints_no_credentials(secrets, tmp_path, capfd):
    url = f"https://some-user:{PASSWORD}@127.0.0.1:9/corpus?X-Amz-Signature={SECRETS['AWS_SESSION_TOKEN']}"
    command = [sys.executable, "-m", "ado_stream.cli", "info", url, "--debug"]  # its traceback is the interpreter's
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=120)
    printed = [run.stdout + run.stderr]
    for arguments in (["info", url], ["doctor", "--url", url]):
        assert main(arguments) == 1
        printed.append("".join(capfd.readouterr()))
    for text in printed:
        assert "127.0.0.1:9" in text
        assert leaks(text) == []


def test_errors_are_pickled_as_they_are():
    error = pickle.loads(pickle.dumps(StorageError("s3://b/k: gone")))
    assert (type(error), str(error)) == (StorageError, "s3://b/k: gone")

"""Check what is installed, the machine's resources and which stores have credentials, with advice.

The network is used only for --url. Credentials are looked for, never read or shown. Exit 1 when something that every
run needs is missing.
"""

import argparse
import importlib.metadata
import os
import platform
import re
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ado_stream.cli.shared import announce
from ado_stream.corpus.places import cache_home
from ado_stream.visible import show_json, visible

OK, WARN, FAIL, INFO = "ok", "warn", "fail", "info"
MIN_DISK_BYTES = 10e9
MIN_SHM_BYTES = 1e9
MIN_OPEN_FILES = 4096


@dataclass(frozen=True)
class Finding:
    """One line of the answer; `advice` is empty where there is nothing to do."""

    area: str
    name: str
    status: str
    value: str
    advice: str = ""


@dataclass(frozen=True)
class Store:
    """A scheme of remote, the client package that reads it, and where its credentials are found."""

    scheme: str
    package: str
    variables: tuple[str, ...]
    files: tuple[str, ...]


STORES = (
    Store(
        "s3://",
        "boto3",
        ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
        ("~/.aws/credentials", "~/.aws/config"),
    ),
    Store(
        "gs://",
        "google-cloud-storage",
        ("GOOGLE_APPLICATION_CREDENTIALS", "GCS_KEY"),
        ("~/.config/gcloud/application_default_credentials.json",),
    ),
    Store("azure://", "azure-storage-blob", ("AZURE_ACCOUNT_ACCESS_KEY",), ()),
    Store("oci://", "oci", (), ("~/.oci/config",)),
    Store("hf://", "huggingface-hub", ("HF_TOKEN",), ("~/.cache/huggingface/token",)),
    Store("sftp://", "paramiko", ("COMPOSER_SFTP_KEY_FILE",), ("~/.ssh/id_ed25519", "~/.ssh/id_rsa")),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("--url", metavar="CORPUS", help="also try to read this corpus, local or remote")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> int:
    """Prints the findings; returns 1 when any of them is a failure."""
    announce("checking this machine")
    checks = (_packages, _kernels, _gpus, _machine, _stores)
    findings = [finding for check in checks for finding in check()]
    if args.url:
        findings.append(_corpus(args.url))
    failed = any(finding.status == FAIL for finding in findings)
    if args.json:
        show_json({"ok": not failed, "findings": [asdict(finding) for finding in findings]})
    else:
        _show(findings)
    return int(failed)


def version_at_least(version: str, minimum: str) -> bool:
    """Whether `version` is `minimum` or newer, by their leading numbers: "2.14.1+cu130" is at least "2.8"."""

    def numbers(text: str) -> list[int]:
        leading = re.match(r"\d+(\.\d+)*", text)
        return [int(part) for part in leading.group().split(".")] if leading else []

    return numbers(version) >= numbers(minimum)


def _packages() -> Iterator[Finding]:
    """Python, the required packages of pyproject.toml, then the optional ones."""
    yield Finding("software", "python", OK, f"{platform.python_version()} at {sys.executable}")
    if _version("ado-stream") is None:
        yield Finding("software", "ado-stream", FAIL, "not installed, run from its sources", "pip install -e .")
        return
    for requirement in importlib.metadata.requires("ado-stream") or []:
        parsed = re.match(r"([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?(?:>=([0-9.]+))?", requirement)
        if parsed is None or "extra ==" in requirement:
            continue
        name, minimum = parsed.group(1), parsed.group(2) or "0"
        found = _version(name)
        if found is None and "platform_system" in requirement and platform.system() != "Linux":
            continue
        if found is None:
            yield Finding("software", name, FAIL, "not installed", f"pip install '{name}>={minimum}'")
        elif not version_at_least(found, minimum):
            yield Finding(
                "software", name, FAIL, f"{found}, older than {minimum}", f"pip install -U '{name}>={minimum}'"
            )
        else:
            yield Finding("software", name, OK, found)
    for name, purpose in (("lm-eval", "eval --tasks"), ("tensorboard", "its logs"), ("wandb", "its logs")):
        yield Finding("software", name, INFO, _version(name) or f"not installed; only for {purpose}")


def _kernels() -> Iterator[Finding]:
    """Numba by compiling a function; Triton by running one of our kernels where there is a GPU."""
    yield _attempt("kernels", "numba", _try_numba, "reinstall numba and numpy of matching versions")
    cache = Path(__file__).parent
    if not os.access(cache, os.W_OK) and not os.environ.get("NUMBA_CACHE_DIR"):
        advice = "set NUMBA_CACHE_DIR to a writable folder, or every start compiles again"
        yield Finding("kernels", "numba cache", WARN, f"{cache} is read-only", advice)
    yield _attempt("kernels", "triton", _try_triton, "install the triton of this torch release")


def _gpus() -> Iterator[Finding]:
    try:
        import torch
    except Exception as error:
        why = str(error).partition("\n")[0]
        yield Finding("machine", "GPU", FAIL, f"torch cannot be imported: {why}", "reinstall torch; is memory limited?")
        return
    if not torch.cuda.is_available():
        built = torch.version.cuda or "without CUDA"
        advice = "to use a GPU: install its driver, then check nvidia-smi" if torch.version.cuda else ""
        yield Finding("machine", "GPU", INFO, f"none usable (torch built {built}); everything runs on the CPU", advice)
        return
    for index in range(torch.cuda.device_count()):
        free_bytes, total_bytes = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        yield Finding("machine", f"GPU {index}", OK, f"{name}, {_size(free_bytes)} of {_size(total_bytes)} free")


def _machine() -> Iterator[Finding]:
    yield Finding("machine", "CPU cores", OK, str(len(os.sched_getaffinity(0))))
    for name, path in {"current folder": Path.cwd(), "cache": cache_home().absolute()}.items():
        free_bytes = shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.is_dir())).free
        advice = "" if free_bytes >= MIN_DISK_BYTES else "set data.cache_limit, or data.cache_dir to a larger disk"
        yield Finding("machine", f"disk, {name}", WARN if advice else OK, f"{_size(free_bytes)} free at {path}", advice)
    shm = Path("/dev/shm")
    if shm.is_dir():
        size_bytes = shutil.disk_usage(shm).total
        advice = "" if size_bytes >= MIN_SHM_BYTES else "a node's ranks communicate by it: docker run --shm-size=8g"
        yield Finding("machine", "/dev/shm", WARN if advice else OK, _size(size_bytes), advice)
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    advice = "" if limit >= MIN_OPEN_FILES else f"ulimit -n {min(65536, hard)}: every open shard needs one"
    yield Finding("machine", "open files", WARN if advice else OK, f"{limit} (at most {hard})", advice)


def _stores() -> Iterator[Finding]:
    for store in STORES:
        if _version(store.package) is None:
            advice = f"pip install {store.package}, if you need it"
            yield Finding("stores", store.scheme, INFO, f"client {store.package} is not installed", advice)
            continue
        places = [name for name in store.variables if os.environ.get(name)]
        places += [name for name in store.files if Path(os.path.expanduser(name)).exists()]
        if places:
            yield Finding("stores", store.scheme, OK, f"credentials in {', '.join(places)}")
        else:
            looked = ", ".join((*store.variables, *store.files))
            yield Finding("stores", store.scheme, INFO, "no credentials found", f"looked for {looked}")


def _corpus(url: str) -> Finding:
    from ado_stream.corpus import load_manifest
    from ado_stream.errors import AdoStreamError
    from ado_stream.redact import redact

    try:
        manifest = load_manifest(url)
    except AdoStreamError as error:
        return Finding("stores", redact(url), FAIL, type(error).__name__, " ".join(str(error).split()))
    splits = [domain["splits"] for domain in manifest["domains"].values()]
    tokens = sum(split["train"]["tokens"] for split in splits if "train" in split)
    return Finding("stores", redact(url), OK, f"{len(splits)} domains, {tokens:,} training tokens")


def _attempt(area: str, name: str, trial: Callable[[], str], advice: str) -> Finding:
    """The result of `trial`; any exception of the library is a finding too, so that the other checks still run."""
    try:
        return Finding(area, name, OK, trial())
    except Exception as error:
        return Finding(area, name, FAIL, f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}", advice)


def _try_numba() -> str:
    import numba

    found = numba.njit(lambda x: x * x + 1)(3)
    if found != 10:
        raise RuntimeError(f"3 * 3 + 1 gave {found}")
    return f"compiles, {numba.get_num_threads()} threads"


def _try_triton() -> str:
    import torch
    import triton

    if not torch.cuda.is_available():
        return f"{triton.__version__} imports; without a GPU the Numba kernels are used"
    from ado_kernels import rms_norm

    x_ND = torch.linspace(-1, 1, 1024, device="cuda").reshape(4, 256)
    error = (rms_norm(x_ND).cpu() - rms_norm(x_ND.cpu())).abs().max().item()
    if not error < 1e-4:  # float32 sums of 256 terms in two orders differ by about 1e-6
        raise RuntimeError(f"rms_norm on the GPU differs from the CPU's by {error:.2g}")
    return "runs a kernel on the GPU with the CPU's result"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB"


def _show(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    def shown(text: str) -> str:
        return escape(visible(text))

    colors = {OK: "green", WARN: "yellow", FAIL: "red", INFO: "dim"}
    table = Table(box=None, pad_edge=False, padding=(0, 2), show_header=False)
    area = ""
    for finding in findings:
        if finding.area != area:
            area = finding.area
            table.add_row(f"[bold]{area}[/bold]")
        color = colors[finding.status]
        table.add_row(f"  {shown(finding.name)}", f"[{color}]{finding.status}[/{color}]", shown(finding.value))
        if finding.advice:
            table.add_row("", "", f"[dim]{shown(finding.advice)}[/dim]")
    Console(highlight=False).print(table)

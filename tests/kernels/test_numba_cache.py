"""Machine code on disk: gone when a source changed, and the only one that anybody computes with."""

import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from ado_kernels import numba_cache
from ado_kernels.numba_cache import clear_stale_cache


def test_a_link_at_the_locks_name_is_not_opened(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("a file of the user's")
    cache = tmp_path / "package" / "__pycache__"
    cache.mkdir(parents=True)
    (cache / "ops.lock").symlink_to(victim)
    compiled = []
    monkeypatch.setattr(numba_cache, "_PACKAGE", cache.parent)
    monkeypatch.setattr(numba_cache, "_compile_in_a_process", lambda group, stamp: compiled.append(group))
    monkeypatch.delenv(numba_cache._COMPILING, raising=False)
    numba_cache.ensure_compiled.__wrapped__("ops")
    assert victim.read_text() == "a file of the user's"
    assert compiled == []
    (cache / "ops.lock").unlink()
    numba_cache.ensure_compiled.__wrapped__("ops")
    assert compiled == ["ops"]


def test_machine_code_lives_as_long_as_its_sources(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "part" / "__pycache__").mkdir(parents=True)
    (tmp_path / "part" / "b.py").write_text("y = 1\n")
    clear_stale_cache(tmp_path)
    cache = tmp_path / "__pycache__"
    compiled = [cache / "a.f-1.py311.nbi", tmp_path / "part" / "__pycache__" / "b.f-1.py311.1.nbc"]

    def compile_all():
        for path in compiled:
            path.write_bytes(b"machine code")

    compile_all()
    clear_stale_cache(tmp_path)
    assert all(path.exists() for path in compiled)
    (tmp_path / "part" / "b.py").write_text("y = 2\n")  # a.f calls something in b
    clear_stale_cache(tmp_path)
    assert not any(path.exists() for path in compiled)
    compile_all()
    (tmp_path / "c.py").write_text("")
    clear_stale_cache(tmp_path)
    assert not any(path.exists() for path in compiled)
    assert sorted(path.name for path in cache.iterdir()) == ["sources.sha1"]


THREADS = """
import torch
from ado_kernels import rms_norm
rms_norm(torch.randn(4, 16))
print(torch.get_num_threads())
"""


@pytest.mark.slow
def test_numbas_threads_do_not_become_torchs():
    """Three stand for the cores of a machine, all of which Numba would give to each rank."""
    assert output_of(THREADS, OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="3").strip() == "1"


BITS = """
import gc, hashlib
import numpy as np, torch
from numba.core.dispatcher import Dispatcher
from ado_kernels import domain_loss, linear_cross_entropy, rms_norm, rms_norm_rope, scaling_law_fit, swiglu

torch.manual_seed(0)
torch.set_num_threads(1)
tensors = []
for dtype in (torch.float32, torch.float64, torch.bfloat16):
    x, gate, up = (torch.randn(3, 5, 2, 100, dtype=dtype, requires_grad=True) for _ in range(3))
    weight = torch.randn(100, dtype=dtype, requires_grad=True)
    angles = torch.randn(5, 50)
    total, normed = rms_norm(x, weight, residual=gate)
    outputs = [total, normed, rms_norm(x), rms_norm_rope(x, weight, angles, angles), swiglu(gate, up)]
    hidden = torch.randn(30, 100, dtype=dtype, requires_grad=True)
    vocabulary = torch.randn(333, 100, dtype=dtype, requires_grad=True)
    targets = torch.randint(333, (30,))
    for ids in (torch.randint(3, (30,)), torch.randint(3, (5,))):
        outputs += linear_cross_entropy(hidden, vocabulary, targets, ids, 3)[:2]
        tensors += domain_loss(torch.randn(30, dtype=dtype), ids, 3)
    sum(output.double().sin().sum() for output in outputs).backward()
    tensors += outputs + [leaf.grad for leaf in (x, gate, up, weight, hidden, vocabulary)]
counts, noise = 64.0 * np.arange(1, 900), np.random.default_rng(0).normal(0, 0.02, (899, 3))
losses = (2 + 30 * counts[:, None] ** -np.array([0.3, 0.4, 0.5])) * np.exp(noise)
laws = [scaling_law_fit(counts, losses.T), scaling_law_fit(counts, np.ascontiguousarray(losses.T))]
digest = hashlib.sha1(b"".join(tensor.detach().double().numpy().tobytes() for tensor in tensors))
digest.update(b"".join(law.theta.tobytes() for law in laws))
kernels = [item for item in gc.get_objects() if isinstance(item, Dispatcher) and "ado_kernels" in item.__module__]
compiled_here = [kernel.__name__ for kernel in kernels if kernel.stats.cache_misses]
print(digest.hexdigest(), compiled_here)
"""


@pytest.mark.slow
def test_the_first_process_on_a_machine_computes_the_bits_of_every_later_one(tmp_path):
    """With nothing on disk yet, all machine code still comes from there; compiled in place, the last bits differ."""
    first, later = (output_of(BITS, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2))
    assert first == later
    assert first.split(maxsplit=1)[1].strip() == "[]"


def output_of(script, **environment):
    """What `script` prints in a process of its own."""
    everything = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env=everything, capture_output=True, text=True, check=True).stdout


UNWRITABLE = """
import logging, os
logging.basicConfig(format="%(message)s")
import ado_kernels, numpy as np
assert ado_kernels.scaling_law_fit(np.arange(1.0, 60.0), np.ones((1, 59))).valid.all()
print(os.environ["NUMBA_CACHE_DIR"], os.environ["TRITON_CACHE_DIR"])
"""


@pytest.mark.slow
def test_without_any_writable_folder_a_private_temporary_one_is_used(tmp_path):
    """A file stands where each package's __pycache__ would be made, and the home folder is no folder."""
    package = tmp_path / "ado_kernels"
    shutil.copytree(Path(numba_cache.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in {path.parent for path in package.rglob("*.py")}:
        (folder / "__pycache__").touch()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("NUMBA_", "TRITON_", "XDG_"))}
    environment |= {"HOME": os.devnull, "TMPDIR": str(temporary), "PYTHONDONTWRITEBYTECODE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), *sys.path])
    run = subprocess.run([sys.executable, "-c", UNWRITABLE], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("no writable folder") == 1
    (folder,) = temporary.glob("ado-kernels-*")
    assert run.stdout.split() == [str(folder / "numba"), str(folder / "triton")]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert list(folder.rglob("*.nbi"))


@pytest.mark.parametrize(("local_rank", "num_lines"), [(None, 1), ("0", 1), ("1", 0)])
def test_one_rank_of_a_machine_logs_the_temporary_folder(tmp_path, monkeypatch, caplog, local_rank, num_lines):
    monkeypatch.setattr(numba_cache, "_can_write", lambda folder: False)
    monkeypatch.setattr(numba_cache.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(numba_cache, "sys", types.SimpleNamespace(modules={}))  # Numba's settings stay
    monkeypatch.setattr(os, "environ", {} if local_rank is None else {"LOCAL_RANK": local_rank})
    numba_cache.use_writable_cache(tmp_path)
    assert caplog.text.count("no writable folder") == num_lines
    assert os.environ["NUMBA_CACHE_DIR"] == str(numba_cache._private_temporary_folder(tmp_path) / "numba")


@pytest.mark.parametrize("given", ["", "a file", "a file/below", "/proc/below"])
def test_a_users_folder_that_cannot_be_written_is_as_none(tmp_path, monkeypatch, caplog, given):
    """Numba takes an empty one for none, and refuses to import kernels without another; Triton fails at a launch."""
    for name in ("a file", "__pycache__"):
        (tmp_path / name).touch()
    value = given and str(tmp_path / given)
    monkeypatch.setattr(numba_cache.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(numba_cache, "sys", types.SimpleNamespace(modules={}))  # Numba's settings stay
    settings = {"HOME": os.devnull, "NUMBA_CACHE_DIR": value, "TRITON_CACHE_DIR": value}
    if given:  # which Triton would not use then
        settings["TRITON_HOME"] = str(tmp_path / "home")
    monkeypatch.setattr(os, "environ", settings)
    numba_cache.use_writable_cache(tmp_path)
    folder = numba_cache._private_temporary_folder(tmp_path)
    assert os.environ["NUMBA_CACHE_DIR"] == str(folder / "numba")
    assert os.environ["TRITON_CACHE_DIR"] == str(folder / "triton")
    assert "(set NUMBA_CACHE_DIR, TRITON_CACHE_DIR to choose another)" in caplog.text


def test_a_users_folder_that_can_be_written_is_kept(tmp_path, monkeypatch, caplog):
    (tmp_path / "__pycache__").touch()
    own = {"HOME": os.devnull, "NUMBA_CACHE_DIR": str(tmp_path / "numba"), "TRITON_HOME": str(tmp_path / "home")}
    monkeypatch.setattr(os, "environ", dict(own))
    numba_cache.use_writable_cache(tmp_path)
    assert os.environ == own
    assert not caplog.text


def test_a_machine_without_any_folder_to_write_is_one_line(tmp_path, monkeypatch):
    def none():
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(numba_cache, "_can_write", lambda folder: False)
    monkeypatch.setattr(numba_cache.tempfile, "gettempdir", none)
    with pytest.raises(OSError, match="^no folder for compiled kernels can be written; set NUMBA_CACHE_DIR and TRITON"):
        numba_cache.use_writable_cache(tmp_path)


def test_a_temporary_folder_that_others_may_write_is_not_used(tmp_path, monkeypatch):
    """What Numba loads from its cache is executed."""
    monkeypatch.setattr(numba_cache.tempfile, "gettempdir", lambda: str(tmp_path))
    own = numba_cache._private_temporary_folder(tmp_path)
    assert numba_cache._private_temporary_folder(tmp_path) == own
    own.chmod(0o777)
    assert numba_cache._private_temporary_folder(tmp_path) != own

"""The rules of the house that a machine can check: imports one way, names frozen, files small, nothing unfinished."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = [ROOT / "ado_stream", ROOT / "kernels" / "ado_kernels", ROOT / "model" / "ado_model"]
FILES = sorted(path for package in PACKAGES for path in package.rglob("*.py"))

# The contract's public names: change them on purpose only.
PUBLIC = {
    "fit": ["fit_scaling_laws", "FitConfig", "ScalingLawFit"],
    "policy": ["AdoPolicy", "AdoConfig", "make_policy", "Floor", "Ceiling", "Pin", "Freeze", "RepetitionGuard"],
    "stream": ["Domain", "AdaptiveStreamingDataset", "AdaptiveLoader", "open_corpus", "Corpus", "cumulative_lengths"],
    "model": ["export_hugging_face"],
    "errors": ["AdoStreamError", "ConfigError", "DataError", "ShardCorrupt", "IndexInvalid", "StorageError", "NotFound"]
    + ["AccessDenied", "Throttled", "CacheFull", "ResumeError", "PolicyError", "CheckpointError"],
}
VERBS = ["demo", "prepare", "info", "lint", "preview", "train", "control", "eval", "export", "fit"]
VERBS += ["simulate", "replay", "report", "trace"]


def relative(path):
    return str(path.relative_to(ROOT))


def test_imports_go_one_way():
    """The contracts stand in pyproject.toml."""
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_public_names_are_frozen_and_load():
    import ado_stream

    names = [name for room in PUBLIC.values() for name in room]
    assert sorted(ado_stream.__all__) == sorted([*names, "__version__"])
    for name in names:
        assert getattr(ado_stream, name) is not None
    with pytest.raises(AttributeError):
        ado_stream.nonsense  # noqa: B018


def test_kernel_names_are_frozen_and_load():
    import ado_kernels
    import ado_model

    assert sorted(ado_kernels.__all__) == [
        "domain_loss",
        "linear_cross_entropy",
        "rms_norm",
        "rms_norm_rope",
        "scaling_law_fit",
        "swiglu",
    ]
    assert all(callable(getattr(ado_kernels, name)) for name in ado_kernels.__all__)
    assert {"nano", "70M", "124M", "1.3B"} <= set(ado_model.PRESETS)


def test_every_verb_is_there_and_says_what_it_does():
    from ado_stream.cli import main

    assert list(main.VERBS) == [*VERBS, "doctor", "completion"]
    for verb in main.VERBS:
        module = importlib.import_module(f"ado_stream.cli.{verb}")
        assert module.__doc__
        assert callable(module.add_arguments)
        assert callable(module.run)


def test_the_folders_that_users_named_shadow_nothing():
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not (ROOT / "model" / "__init__.py").exists()


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_file_says_its_purpose_and_is_of_one_piece(path):
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "no docstring that says what the file is for"
    assert text.count("\n") <= 400, "over 400 lines: two files"
    verb = path.parent.name == "cli"  # a verb's two functions are described once, in cli/main.py
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_") and not verb:
            overload = "overload" in map(ast.unparse, node.decorator_list)  # its implementation has the docstring
            assert overload or "__doc__" in ast.unparse(node) or ast.get_docstring(node), (
                f"{node.name} has no docstring"
            )
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 80, f"{node.name} is over 80 lines"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"bare except in line {node.lineno}"
        if isinstance(node, ast.Raise) and isinstance(node.exc, (ast.Name, ast.Call)):
            name = getattr(node.exc, "id", getattr(getattr(node.exc, "func", None), "id", ""))
            assert name != "NotImplementedError", f"unfinished in line {node.lineno}"


# File names that stand in several rooms: the same part in each.
SAME_PART = {"cpu.py", "gpu.py"}


def test_a_file_name_in_a_traceback_names_its_room():
    names = [path.name for path in FILES if path.name != "__init__.py"]
    assert {name for name in names if names.count(name) > 1} <= SAME_PART


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_compiled_code_that_is_cached_calls_nothing_compiled_elsewhere(path):
    """Numba's cache on disk does not notice changes of functions imported from other files; see stream/numba_order.py.

    Unless the package throws its machine code away when any of its files changed.
    """
    root = next(package for package in PACKAGES if path.is_relative_to(package))
    if "clear_stale_cache(" in (root / "__init__.py").read_text():
        return
    tree = ast.parse(path.read_text())
    cached = [node for node in tree.body if isinstance(node, ast.FunctionDef) and _is_cached(node)]
    if not cached:
        return
    imported = {
        alias.asname or alias.name: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("ado_", "."))
        for alias in node.names
    }
    compiled_elsewhere = {name for name, module in imported.items() if _is_compiled(module, name)}
    for function in cached:
        used = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
        assert not used & compiled_elsewhere, f"{function.name} is cached and calls {used & compiled_elsewhere}"


def _is_cached(function):
    return any(
        isinstance(decorator, ast.Call)
        and any(keyword.arg == "cache" and getattr(keyword.value, "value", False) for keyword in decorator.keywords)
        for decorator in function.decorator_list
    )


def _is_compiled(module, name):
    return hasattr(getattr(importlib.import_module(module), name, None), "py_func")

"""Functions that mypy is told to pass over, those of files with Triton kernels, are annotated as all others are."""

import ast
from pathlib import Path

import pytest

import ado_kernels

PACKAGE = Path(ado_kernels.__file__).parent
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if "@triton.jit" in path.read_text()]


def is_kernel(function):
    return any("triton.jit" in ast.unparse(decorator) for decorator in function.decorator_list)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_host_functions_are_annotated(path):
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    assert any(is_kernel(function) for function in functions)
    for function in functions:
        arguments = [*function.args.args, *function.args.kwonlyargs, function.args.vararg, function.args.kwarg]
        missing = [argument.arg for argument in arguments if argument is not None and argument.annotation is None]
        assert is_kernel(function) or (function.returns is not None and not missing), (function.name, missing)

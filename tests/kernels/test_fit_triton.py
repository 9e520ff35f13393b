"""The fit's Triton kernels: the interpreter reaches Numba's minima; every target compiles without spilling much.

Both without a GPU. The interpreter is chosen when triton is imported, hence a process of its own; it is slow (a pass
over the points costs milliseconds), hence one domain and one start.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from ado_kernels import scaling_law_fit  # noqa: E402
from ado_kernels.fit import triton_kernels  # noqa: E402

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
POINTERS = {"face_ptr": "*i32"}
SCALARS = ("num_steps", "num_kept", "first", "every", "count_stride", "num_points", "num_searches", "stride")
# constants; limits on registers and bytes of stack: the search has 168 and 8 with triton 3.9, up to 250 and 0 with 3.6
KERNELS = {
    "smooth_kernel": ({"WINDOW": 101, "BLOCK": 128}, 64, 0),
    "search_kernel": ({"STARTS": 64, "ALPHAS": 16, "BLOCK": 128}, 255, 64),
    "choose_kernel": ({"BLOCK": 16}, 64, 0),
}
INTERPRETED = """
import numpy as np
import torch
from ado_kernels import scaling_law_fit
from ado_kernels.fit.problem import FitOptions
from ado_kernels.fit import triton_fit
np.seterr(all="ignore")  # lanes that are not used overflow
counts = 256.0 * np.arange(1, 81)
loss = (2.0 + 30.0 * counts**-0.4) * np.exp(0.01 * np.random.default_rng(0).standard_normal((1, 80)))
options = FitOptions(smooth_window=11, every=2, grid_log_beta=(2.0, 4.0), grid_log_eps=(0.5, 1.0), grid_alpha=(0.3,))
every = triton_fit._starts
triton_fit._starts = lambda options: (every(options)[0][-1:], every(options)[1][-1:])  # the free search alone
found = scaling_law_fit(counts, loss, options, "triton")
known = scaling_law_fit(counts, loss, options, "numba")
print(found, known)
assert abs(found.objective - known.objective).max() <= 1e-6 * (known.objective + 0.001).min()
assert np.allclose(found.theta, known.theta, rtol=1e-3) and (found.num_points == known.num_points).all()
assert np.allclose(found.residual_scale, known.residual_scale, rtol=0.2)  # lower median against mean of the middle two
"""


@pytest.mark.slow
def test_the_interpreter_reaches_the_same_minimum():
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "TRITON_DEFAULT_FP_FUSION": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    run = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]


def compiled(name, architecture):
    kernel = getattr(triton_kernels, name)
    constants = KERNELS[name][0]
    types = {}
    for argument in kernel.arg_names:
        kind = "i32" if argument in SCALARS else POINTERS.get(argument, "*fp64")
        types[argument] = "constexpr" if argument in constants else kind
    order = {argument: (position,) for position, argument in enumerate(kernel.arg_names)}
    source = ASTSource(
        kernel,
        types,
        {order[argument]: value for argument, value in constants.items()},
        {order[a]: [["tt.divisibility", 16]] for a, kind in types.items() if kind.startswith("*")},
    )
    target = GPUTarget("cuda", architecture, 32)
    return triton.compile(source, target=target, options={"num_warps": 4})


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize("name", list(KERNELS))
def test_compiles_within_registers_and_stack(name, architecture, monkeypatch):
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # unset, triton 3.9 warns
    binary = compiled(name, architecture)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(rf"{key}:(\d+)", usage).group(1)) for key in ("REG", "STACK"))
    print(f"{name} sm_{architecture}: {registers} registers, {stack} bytes of stack")
    _, most_registers, most_stack = KERNELS[name]
    assert registers <= most_registers
    assert stack <= most_stack


def test_without_a_gpu_the_error_says_what_to_do(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="backend='numba'"):
        scaling_law_fit(np.arange(1.0, 60.0), np.ones((1, 59)), backend="triton")

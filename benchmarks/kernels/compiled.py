"""What does the compiler make of every Triton kernel for sm_80, sm_90, sm_100 and gfx942? No GPU needed.

    python -m benchmarks.kernels.compiled

Prints registers, spills, shared memory, 128-bit accesses and barriers of the machine code, and writes them to
benchmarks/results/kernels_compiled.json. Bars: the limits in tests/kernels/test_ahead_of_time.py.
"""

from benchmarks.common import size, write_result
from tests.kernels.compiled import CALLS, SHARED_BYTES, compiled


def main() -> None:
    used = {
        f"{call}, {launch.name}, {architecture}": launch.usage()
        for architecture in list(SHARED_BYTES)[: size(None, 1)]
        for call in list(CALLS)[: size(None, 1)]
        for launch in compiled(call, architecture)
    }
    write_result("kernels_compiled", {"note": "Compiled ahead of time; no GPU was at hand.", "usage": used})


if __name__ == "__main__":
    main()

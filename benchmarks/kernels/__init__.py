"""How fast and how right the kernels are, on one device, in one command of at most nine minutes.

    python -m benchmarks.kernels                 on a GPU: every operation against torch and what else is installed
    python -m benchmarks.kernels --smoke         small shapes, two repeats: proves the script, on a CPU too
    python -m benchmarks.kernels --tune          on a GPU: chooses launches and writes ado_kernels/ops/launch_table.py

Prints one JSON line per case as soon as it is known (the run may be cut), writes benchmarks/results/kernels-CARD-DATE
.json, and prints a table last. Floors are computed from ceilings measured in the same run; the bars, and which of them
are met, are in table.py. A baseline that is absent or fails is recorded as such; a wrong result of ours, or a failure,
is exit code 1. `pytest -m gpu -n 0` is the test of every shape, dtype and of equal bits; what is timed is compared here
too.
"""

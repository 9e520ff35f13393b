"""How fast and how right the kernels are, on one device, in one command of at most nine minutes.

    python -m benchmarks.kernels                 on a GPU: every section, most valuable first
    python -m benchmarks.kernels --smoke         small shapes, two repeats: proves the script, on a CPU too
    python -m benchmarks.kernels --tune          on a GPU: chooses launches and writes ado_kernels/ops/launch_table.py

One JSON line per case as soon as it is known (the run may be cut), then benchmarks/results/kernels-CARD-DATE.json and
pictures beside it. Floors are computed from ceilings measured in the same run. Every baseline is guarded: one that is
absent or fails is recorded as such. Nothing starts after 480 s; what has started ends within 25 s of compiling and a
few of timing.
"""

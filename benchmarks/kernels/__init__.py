"""How fast and how right the kernels are, on one device, in one command of at most nine minutes.

    python -m benchmarks.kernels                 on a GPU: every section, most valuable first
    python -m benchmarks.kernels --smoke         small shapes, two repeats: proves the script, on a CPU too
    python -m benchmarks.kernels --tune          on a GPU: chooses launches and writes ado_kernels/ops/launch_table.py

Prints one JSON line per case as soon as it is known (the run may be cut), writes benchmarks/results/kernels-CARD-DATE
.json, and prints a table last. Floors are computed from ceilings measured in the same run; the bars, and which of them
are met, are in table.py. A baseline that is absent or fails is recorded as such; a wrong result of ours, or a failure,
is exit code 1.

Nothing starts after 480 s. By estimate (0.2 to 0.8 s a timing, 1 to 5 s a compilation; not measured) what has bars is
done after 210 s and all but the sweep after 470 s; the sweep takes what is left.
"""

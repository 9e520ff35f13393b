"""One file per question, each runnable alone: `python -m benchmarks.bench_NAME`; JSON to benchmarks/results/."""

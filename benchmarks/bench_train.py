"""How fast a training step is, and what ADO adds to it.

On a CPU: the nano model at sequence 256 and vocabulary 4096, with and without freed memory kept and idle threads
asleep (each in a process of its own), then what ADO adds to a step against the natural mixture, in turn.
On a GPU: 124M and 1.3B at sequence 1024, bfloat16, compiled: model FLOP/s (6 N + 12 L H Q T a token) against the rate
of a large matrix product measured in the same process; ADO's share likewise.
"""

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import time

import numpy as np

from ado_stream.train.host import SPIN_COUNT
from benchmarks.common import write_result

CPU_ROWS, CPU_TOKENS, CPU_VOCABULARY = 8, 256, 4096
GPU_ROWS = {"124M": 32, "1.3B": 8}
GPU_BARS = {"124M": 0.5, "1.3B": 0.55}
NUM_DOMAINS = 22
MATMUL_SIZE = 8192


def make_step(preset: str, rows: int, num_tokens: int, vocabulary: int, device: str):
    """(a call that does one step and returns its sums and counts, the model's sizes)."""
    import torch

    from ado_model import PRESETS, Transformer
    from ado_stream.train.config import TrainSection
    from ado_stream.train.distributed import World
    from ado_stream.train.parallel import ParallelModel
    from ado_stream.train.step import TrainStep, make_optimizer

    options = TrainSection(compile=device == "cuda", micro_batch_size=rows)
    sizes = dataclasses.replace(PRESETS[preset], vocab_size=vocabulary, context_length=num_tokens)
    parallel = ParallelModel(Transformer(sizes), World(0, 1, torch.device(device)), options)
    step = TrainStep(parallel, make_optimizer(parallel.model, options), options, NUM_DOMAINS)
    tokens = torch.randint(vocabulary, (rows, num_tokens + 1), device=device)
    domains = torch.randint(NUM_DOMAINS, (rows,), device=device)

    def one():
        outcome = step.update(*step.forward_backward(tokens, domains), 1e-4)
        return outcome.sums_K, outcome.counts_K

    return one, sizes


def cpu_tokens_per_s(keep_memory: bool, repeats: int) -> float:
    """Tokens per second of nano's median step in this process."""
    from ado_stream.train.host import keep_freed_memory

    if keep_memory:
        keep_freed_memory()
    step, _ = make_step("nano", CPU_ROWS, CPU_TOKENS, CPU_VOCABULARY, "cpu")
    step()
    return CPU_ROWS * CPU_TOKENS / statistics.median(_seconds(step) for _ in range(repeats))


def policy_seconds(name: str, num_updates: int) -> float:
    """Seconds of one policy update, the mean over a run of `num_updates` with all of its refits."""
    policy = _policy(name, num_updates)
    losses_MK = _losses(num_updates)
    counts_K = np.full(NUM_DOMAINS, 12)
    policy.update(losses_MK[0], counts_K)
    started = time.perf_counter()
    for losses_K in losses_MK[1:]:
        policy.update(losses_K, counts_K)
    return (time.perf_counter() - started) / (num_updates - 1)


def ado_share(step, seconds_of, pairs: int, runs: int = 5) -> dict:
    """What ADO adds to `step`, as a share of it, in three ways.

    Steps with ADO and steps with the natural mixture are taken in turn, without a refit in them; medians of the pairs'
    differences have a 95 % interval (bootstrap). whole_steps: of the steps as a whole, which on a busy machine cannot
    tell one percent. told: of the part after each step that differs, reduction and policy. counted: an update's mean
    over a run of 2,000 steps with all refits, less the natural mixture's; median and range of `runs`.
    """
    both = [_with_policy(step, name) for name in ("ado", "natural")]
    for each, _ in both:
        each()
    whole = np.array([[seconds_of(each) for each, _ in both] for _ in range(pairs)])
    told = np.transpose([spent[-pairs:] for _, spent in both])
    step_s = float(np.median(whole[:, 1]))
    counted = [(policy_seconds("ado", 2000) - policy_seconds("natural", 2000)) / step_s for _ in range(runs)]
    return {
        "step_s": step_s,
        "pairs": pairs,
        "whole_steps": _median_difference(whole / step_s),
        "told": _median_difference(told / step_s),
        "counted": {"runs": runs, "median": statistics.median(counted), "range": [min(counted), max(counted)]},
    }


def _median_difference(value_R2: np.ndarray) -> dict:
    """The median of first less second over pairs, and the 95 % interval of that median."""
    difference_R = value_R2[:, 0] - value_R2[:, 1]
    drawn = np.random.default_rng(0).choice(difference_R, (4000, len(difference_R)))
    interval = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return {"median": float(np.median(difference_R)), "interval_95": interval.tolist()}


def _with_policy(step, name: str):
    """(a call that does one step and tells a policy of it, as AdaptiveLoader does; seconds of each telling)."""
    from ado_stream.reduction import LossReduction

    policy, reduction = _policy(name, 1_000_000), LossReduction(NUM_DOMAINS, replication=1, timeout_s=600)
    counts_K = np.full(NUM_DOMAINS, 12)
    steps, spent = itertools.count(), []

    def one():
        sums_K, tokens_K = step()
        started = time.perf_counter()
        for _, sum_K, token_K in reduction.push(next(steps), sums_K, tokens_K):
            policy.update(np.divide(sum_K, token_K, out=np.full(NUM_DOMAINS, np.nan), where=token_K > 0), counts_K)
        spent.append(time.perf_counter() - started)

    return one, spent


def _policy(name: str, total_steps: int):
    from ado_stream.policy.registry import make_policy

    options = {"total_steps": total_steps} if name == "ado" else {}
    return make_policy(name, {f"d{k}": 1.0 for k in range(NUM_DOMAINS)}, **options)


def _losses(num: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    return 2 + 5 * np.arange(1, num + 1)[:, None] ** -0.3 + 0.05 * generator.random((num, NUM_DOMAINS))


def on_cpu(repeats: int) -> dict:
    """Figures of the CPU, each variant in its own process because both settings are the process's."""
    from ado_stream.train.host import keep_freed_memory

    load = os.getloadavg()
    variants = {}
    for keep in (True, False):
        for spins in (0, SPIN_COUNT, 300_000):  # none, ours, the default of GNU's OpenMP
            command = [sys.executable, "-m", "benchmarks.bench_train", "--child", str(int(keep)), str(repeats)]
            environment = {**os.environ, "GOMP_SPINCOUNT": str(spins)}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            variants[f"memory {'kept' if keep else 'returned'}, {spins} spins"] = json.loads(done.stdout)
    keep_freed_memory()
    step, _ = make_step("nano", CPU_ROWS, CPU_TOKENS, CPU_VOCABULARY, "cpu")
    return {
        "load_average_before": load,
        "tokens_per_s": variants,
        "load_average_after": os.getloadavg(),
        "ado_share_of_a_nano_step": ado_share(step, _seconds, pairs=3 * repeats),
        "bar_share": 0.01,
    }


def on_gpu(repeats: int) -> dict:
    """Model FLOP/s of both presets as a share of a large matrix product's rate."""
    import torch

    a, b = (torch.randn(MATMUL_SIZE, MATMUL_SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    rate = 2 * MATMUL_SIZE**3 / statistics.median(_cuda_seconds(lambda: a @ b) for _ in range(20))
    found = {"matmul_flop_per_s": rate}
    for preset, rows in GPU_ROWS.items():
        step, sizes = make_step(preset, rows, 1024, 50304, "cuda")
        for _ in range(5):
            step()
        seconds = statistics.median(_cuda_seconds(step) for _ in range(repeats))
        flops = rows * 1024 * sizes.flops_per_token(1024) / seconds
        found[preset] = {
            "tokens_per_s": rows * 1024 / seconds,
            "model_flop_per_s": flops,
            "share_of_matmul": flops / rate,
            "bar_share_of_matmul": GPU_BARS[preset],
            "ado_share_of_step": ado_share(step, _cuda_seconds, pairs=3 * repeats),
            "bar_ado_share": 0.001,
        }
        del step
        torch.cuda.empty_cache()
    return found


def _seconds(call) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _cuda_seconds(call) -> float:
    import torch

    torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    """Runs what this machine can and writes benchmarks/results/train.json."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(cpu_tokens_per_s(bool(int(args.child[0])), int(args.child[1]))))
        return
    result = {"cpu": on_cpu(args.repeats)}
    if torch.cuda.is_available():
        result["gpu"] = on_gpu(args.repeats)
    write_result("train", result)


if __name__ == "__main__":
    main()

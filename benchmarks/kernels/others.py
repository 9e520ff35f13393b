"""The scaling-law fit on CPU and GPU, the host cost of a registered operation, a sweep of RMSNorm's backward."""

import time

import numpy as np
import torch

from ado_kernels import rms_norm, scaling_law_fit
from ado_kernels.ops.launch import using
from benchmarks.kernels.harness import Bench

FIT_SIZES = ((1, 600), (22, 6000), (128, 6000), (22, 60000))


def run_fit(bench: Bench) -> None:
    """Milliseconds and objective of the fit, Numba against Triton, on laws with 1 % noise."""
    for num_domains, num_points in ((2, 300),) if bench.smoke else FIT_SIZES:
        if bench.out_of_time():
            bench.emit("fit", f"K={num_domains} T={num_points}", skipped="out of time")
            continue
        generator = np.random.default_rng(0)
        counts_T = np.arange(1, num_points + 1) * 256.0
        losses_KT = 2.0 + 3.0 * counts_T ** -generator.uniform(0.1, 0.5, (num_domains, 1))
        losses_KT *= np.exp(0.01 * generator.standard_normal(losses_KT.shape))
        objectives = {}
        for backend in ("numba", "triton") if bench.on_gpu else ("numba",):
            scaling_law_fit(counts_T, losses_KT, backend=backend)
            start = time.perf_counter()
            fit = scaling_law_fit(counts_T, losses_KT, backend=backend)
            seconds = time.perf_counter() - start
            objectives[backend] = fit.objective
            case = f"K={num_domains} T={num_points} {backend}"
            bench.emit("fit", case, ms=seconds * 1e3, objective_sum=float(np.sum(fit.objective)))
        if len(objectives) == 2:
            worst = float(np.max(objectives["triton"] / objectives["numba"] - 1))
            bench.emit("fit", f"K={num_domains} T={num_points}", triton_over_numba_objective_minus_1=worst)


def run_overhead(bench: Bench) -> None:
    """Host microseconds of one eager call on a tiny tensor, and graph breaks of a compiled block."""
    x = torch.randn(4, 64, device=bench.device)
    weight = torch.ones(64, device=bench.device)
    leaf = x.clone().requires_grad_()
    calls = {
        "rms_norm, no grad": lambda: rms_norm(x, weight),
        "rms_norm, grad": lambda: rms_norm(leaf, weight),
        "F.rms_norm, no grad": lambda: torch.nn.functional.rms_norm(x, (64,), weight),
    }
    for name, call in calls.items():
        for _ in range(20):
            call()
        repeats = 20 if bench.smoke else 1000
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        bench.emit("host overhead", name, us=(time.perf_counter() - start) / repeats * 1e6)
    explanation = torch._dynamo.explain(lambda x: rms_norm(x, weight, 1e-6, x)[0])(x)
    bench.emit("torch.compile", "rms_norm", graph_breaks=explanation.graph_break_count)


def run_sweep(bench: Bench) -> None:
    """RMSNorm backward by programs and stages. Programs decide bits: a reason to change the table's row for all."""
    if not bench.on_gpu:
        bench.emit("sweep", "rms_norm backward", skipped="needs a CUDA GPU")
        return
    for width in (768, 2048, 4096, 8192):
        if bench.out_of_time():
            bench.emit("sweep", f"rms_norm backward D={width}", skipped="out of time")
            continue
        milliseconds, plan = _fastest_backward(bench, width)
        bench.emit("sweep", f"rms_norm backward D={width}", ms=milliseconds, **plan)


def _fastest_backward(bench: Bench, width: int) -> tuple[float, dict]:
    """Milliseconds, programs and stages of the fastest launch for 16,384 rows of this width."""
    from ado_kernels.ops.rms_norm import gpu

    x, dy = (torch.randn(16384, width, device=bench.device).bfloat16() for _ in range(2))
    weight = torch.ones(width, device=bench.device).bfloat16()
    _, rstd, _ = gpu.forward_gpu(x, None, weight, 1e-6)
    results = []
    for programs in (132, 264, 528, 1056):
        for stages in (1, 2, 3):
            plan = {"programs": programs, "stages": stages}
            with using("rms_norm_backward", **plan):
                results.append((bench.time_ms(lambda: gpu.backward_gpu(dy, None, x, weight, rstd)), plan))
    return min(results, key=lambda result: result[0])

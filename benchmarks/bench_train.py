"""How fast is a training step, and what does all of ADO add to it?

Two loops on one model take turns, a window of steps each: one that gives its losses to a policy and reads by the
mixture that it publishes, and one that reads by the natural mixture, without a policy. Both read real shards and take
per-domain sums. ADO's share is the median difference of paired windows, with a 95 % interval; and the time of the sums
by themselves, though a mean alone costs some of it too; and a refit of 60,000 steps of history, spread over the 1,000
steps between two refits. One process: what ranks send each other for ADO, 2 K numbers in place of two and K back, is
not in it. Speed is model FLOP/s (6 N + 12 L H Q T a token) against the rate of a large matrix product in the same
process. On a GPU: 124M and 1.3B at sequence 1024, bfloat16, compiled; laid out for four minutes, and each case is
written as soon as it is known. On a CPU: nano at sequence 256. Bars: ADO adds at most 1 % of a step on a CPU, 0.1 % on
a GPU, where the model reaches 0.5 (124M) and 0.55 (1.3B) of the matrix product's rate.
"""

import argparse
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import add_device, in_own_process, median_s, size, write_result

LAG, REFIT_INTERVAL = 8, 1000
HISTORY_STEPS = size(60_000, 600)


@dataclass(frozen=True)
class Case:
    """One model on one device. A window is `steps` steps; `pairs` of them are measured, or as many as `seconds` allow.

    bars: the least share of the matrix product's rate, and the most that ADO may add, as a share of a step.
    """

    preset: str
    device: str
    rows: int
    num_tokens: int
    vocabulary: int
    num_domains: int = 22
    pairs: int = 16
    steps: int = 10
    seconds: float = 45.0
    matmul_size: int = 8192
    history_steps: int = HISTORY_STEPS
    bars: tuple[float | None, float] = (None, 0.01)


CASES = {
    "cuda": [
        Case("124M", "cuda", rows=32, num_tokens=1024, vocabulary=50304, pairs=80, bars=(0.5, 0.001)),
        Case("1.3B", "cuda", rows=8, num_tokens=1024, vocabulary=50304, pairs=28, steps=6, bars=(0.55, 0.001)),
    ],
    "cpu": [
        size(
            Case("nano", "cpu", 8, 256, vocabulary=4096, pairs=200, steps=2, seconds=120.0, matmul_size=1024),
            Case("nano", "cpu", 2, 32, vocabulary=320, num_domains=2, pairs=3, steps=1, matmul_size=64),
        )
    ],
}


def measure(case: Case) -> dict[str, Any]:
    """Speed of the natural loop, and ADO's share of its step."""
    from ado_stream.train.cpu_tuning import keep_freed_memory

    if case.device == "cpu":
        keep_freed_memory()
    rate = matmul_flop_per_s(case)
    with tempfile.TemporaryDirectory() as folder:
        corpus = write_corpus(Path(folder), case.num_domains, case.num_tokens)
        step, flops_per_token = make_step(case)
        loops = [Loop(case, corpus, step, with_ado) for with_ado in (True, False)]
        pair_s = windows_in_turn(case, loops)
        for loop in loops:
            loop.close()
    step_s = float(np.median(pair_s[:, 1]))
    tokens_per_s = case.rows * case.num_tokens / step_s
    fit_share = refit_seconds(case) / REFIT_INTERVAL / step_s
    sums_share = sums_seconds(case) / step_s
    loop_share = median_difference(pair_s / step_s)
    interval = [end + sums_share + fit_share for end in loop_share["interval_95"]]
    least, most = case.bars
    return {
        "step_s": step_s,
        "tokens_per_s": tokens_per_s,
        "model_flop_per_s": flops_per_token * tokens_per_s,
        "matmul_flop_per_s": rate,
        "share_of_matmul": flops_per_token * tokens_per_s / rate,
        "bar_share_of_matmul": least,
        "pairs_of_windows": len(pair_s),
        "steps_a_window": case.steps,
        "ado_share": loop_share["median"] + sums_share + fit_share,
        "ado_share_interval_95": interval,
        "ado_share_of_loop": loop_share,
        "ado_share_of_sums": sums_share,
        "ado_share_of_refits": fit_share,
        "bar_ado_share": most,
        "verdict": verdict(interval, most),
    }


def verdict(interval: list[float], most: float) -> str:
    """Whether a share with this interval is within its bar."""
    low, high = interval
    return "met" if high <= most else "missed" if low > most else "not resolved: the interval holds the bar"


def make_step(case: Case) -> tuple[Any, int]:
    """(the TrainStep, floating-point operations a token)."""
    import torch

    from ado_model import PRESETS, Transformer
    from ado_stream.train.distributed import DistributedContext
    from ado_stream.train.parallel import ParallelModel
    from ado_stream.train.run_config import TrainSection
    from ado_stream.train.train_step import TrainStep, make_optimizer

    torch.manual_seed(0)
    options = TrainSection(compile=case.device == "cuda")
    sizes = replace(PRESETS[case.preset], vocab_size=case.vocabulary, context_length=case.num_tokens)
    parallel = ParallelModel(Transformer(sizes), DistributedContext(0, 1, torch.device(case.device)), options)
    step = TrainStep(parallel, make_optimizer(parallel.model, options), options, case.num_domains)
    return step, sizes.flops_per_token(case.num_tokens)


class Loop:
    """A training loop with batches of its own: with ADO, or by the natural mixture without a policy."""

    def __init__(self, case: Case, corpus: Any, step: Any, with_ado: bool):
        from ado_stream.loader import AdaptiveLoader
        from ado_stream.stream.dataset import AdaptiveStreamingDataset

        self._step, self._with_ado = step, with_ado
        self._dataset = AdaptiveStreamingDataset(corpus.domains, global_batch_size=case.rows, mixture_lag=LAG)
        self.policy = warm_policy(case) if with_ado else None
        self._loader = AdaptiveLoader(self._dataset, self.policy, pin_memory=case.device == "cuda", device=case.device)
        self._batches = iter(self._loader)

    def run(self, num_steps: int) -> None:
        """Launches that many steps."""
        for batch in itertools.islice(self._batches, num_steps):
            outcome = self._step.update(*self._step.forward_backward(batch["tokens"], batch["domain"]), 1e-4)
            if self._with_ado:
                self._loader.observe(*outcome.for_policy(), reduced=True)
            else:
                self._dataset.publish(batch["step"] + 1 + LAG, self._dataset.prior)

    def close(self) -> None:
        """Stops the threads."""
        self._loader.close()


def windows_in_turn(case: Case, loops: list[Loop]) -> np.ndarray:
    """(R, 2) seconds a step of both loops' windows; the order within a pair alternates. At least three pairs."""
    wait = synchronise(case.device)
    for loop in loops:
        loop.run(3)
    wait()
    pair_s: list[list[float]] = []
    started = time.perf_counter()
    while len(pair_s) < case.pairs and (len(pair_s) < 3 or time.perf_counter() - started < case.seconds):
        seconds = [0.0, 0.0]
        for number in (0, 1) if len(pair_s) % 2 else (1, 0):
            began = time.perf_counter()
            loops[number].run(case.steps)
            wait()
            seconds[number] = (time.perf_counter() - began) / case.steps
        pair_s.append(seconds)
    return np.array(pair_s)


def median_difference(value_R2: np.ndarray) -> dict[str, Any]:
    """The median of first less second over pairs, and the 95 % interval of that median (bootstrap)."""
    difference_R = value_R2[:, 0] - value_R2[:, 1]
    drawn = np.random.default_rng(0).choice(difference_R, (4000, len(difference_R)))
    interval = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return {"median": float(np.median(difference_R)), "interval_95": interval.tolist()}


def warm_policy(case: Case) -> Any:
    """ADO just after its first refit, so that every step mixes by laws and the windows hold no further refit."""
    from ado_stream.policy.policy_registry import make_policy

    names = {f"d{k:02}": 1.0 for k in range(case.num_domains)}
    policy = make_policy("ado", names, start_step=REFIT_INTERVAL, ignore_steps=100, interval=REFIT_INTERVAL)
    for loss_K in _losses(REFIT_INTERVAL + 1, case.num_domains):
        policy.update(loss_K, np.full(case.num_domains, 12))
    assert policy.fit is not None
    return policy


def refit_seconds(case: Case) -> float:
    """Seconds of one refit late in a long run."""
    from ado_stream.policy.scaling_laws import fit_scaling_laws

    count_T = 12.0 * case.num_domains * np.arange(1, case.history_steps + 1)
    loss_KT = _losses(case.history_steps, case.num_domains).T
    return median_s(lambda: fit_scaling_laws(count_T, loss_KT), repeats=3)


def sums_seconds(case: Case) -> float:
    """Seconds of a step's per-domain sums of token losses, by themselves."""
    import torch

    from ado_kernels import domain_loss

    losses_N = torch.rand(case.rows * case.num_tokens, device=case.device)
    domain_B = torch.randint(case.num_domains, (case.rows,), device=case.device)
    return seconds_a_call(lambda: domain_loss(losses_N, domain_B, case.num_domains), case.device, 20)


def write_corpus(folder: Path, num_domains: int, num_tokens: int) -> Any:
    """An opened corpus of words drawn at random, as bytes; a few dozen samples a domain."""
    from ado_stream.corpus import open_corpus
    from ado_stream.prepare.coordinator import prepare
    from ado_stream.prepare.prepare_config import PrepareConfig

    generator = np.random.default_rng(0)
    for k in range(num_domains):
        texts = [" ".join(map(str, generator.integers(10_000, size=num_tokens))) for _ in range(8)]
        lines = [json.dumps({"text": text}) for text in texts]
        (folder / f"d{k:02}.jsonl").write_text("\n".join(lines) + "\n")
    inputs = tuple(str(path) for path in sorted(folder.glob("*.jsonl")))
    return open_corpus(prepare(PrepareConfig(inputs, str(folder / "corpus"), seq_len=num_tokens, workers=1)))


def matmul_flop_per_s(case: Case) -> float:
    """Rate of a square matrix product: bfloat16 on a GPU, float32 on a CPU."""
    import torch

    size, dtype = case.matmul_size, torch.bfloat16 if case.device == "cuda" else torch.float32
    a, b = (torch.randn(size, size, device=case.device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / seconds_a_call(lambda: a @ b, case.device, 10)


def seconds_a_call(call: Callable[[], Any], device: str, num: int) -> float:
    """Median seconds of a call, of `num` in a row."""
    wait = synchronise(device)

    def several() -> None:
        for _ in range(num):
            call()
        wait()

    return median_s(several) / num


def _losses(num: int, num_domains: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    return 2 + 5 * np.arange(1, num + 1)[:, None] ** -0.3 + 0.05 * generator.random((num, num_domains))


def synchronise(device: str) -> Callable[[], None]:
    """The call that waits for the device."""
    import torch

    return torch.cuda.synchronize if device == "cuda" else lambda: None


def result_name(card: str | None) -> str:
    """train, or with the card and the day."""
    day = datetime.now(UTC).strftime("%Y-%m-%d")
    return "train" if card is None else f"train-{card.lower().replace(' ', '-')}-{day}"


def main() -> None:
    """Measures the cases of one device and writes each into benchmarks/results as soon as it is known."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    add_device(parser)
    args = parser.parse_args()
    name = result_name(torch.cuda.get_device_name() if args.device == "cuda" else None)
    result: dict[str, Any] = {"load_average": os.getloadavg()}
    for case in CASES[args.device]:
        result[case.preset] = in_own_process(measure, case)  # Dynamo's cache is the process's: one preset each
        write_result(name, result)


if __name__ == "__main__":
    main()

"""What does `log.sample_losses` add to a training step?

By count: the operations that it adds, by the product's own functions, timed by themselves (sums by row and then by
domain in place of sums by domain, a longer copy; on the host the highest losses and their text in the record), against
a step of the same model, in turn in the same process; the least time of each, which a busy machine distorts least.
Steps with it and without cannot resolve the bar: one process's steps differ by more. A CPU: nano at sequence 256. A
GPU: 124M, bfloat16, compiled. Over ranks there is one collective of B numbers more, which is not in it. Bar: 0.1 % of a
step.
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.bench_train import CASES, Case, make_step, synchronise
from benchmarks.common import add_device, bar, seconds_in_turn, size, write_result

KEPT, MOST, AT_ONCE = 16, 0.001, size(50, 2)


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """The share of a step, and its parts in seconds."""
    import torch

    from ado_kernels import domain_loss
    from ado_stream.redact import plain
    from ado_stream.train.step_log import highest_losses
    from ado_stream.train.train_step import by_domain

    step, _ = make_step(case)
    tokens = torch.randint(case.vocabulary, (case.rows, case.num_tokens + 1), device=case.device)
    domain_B = torch.randint(case.num_domains, (case.rows,), device=case.device)
    losses_N = torch.rand(case.rows * case.num_tokens, device=case.device)
    host_B = np.random.default_rng(0).random(case.rows)
    wait = synchronise(case.device)

    def train() -> None:
        step.update(*step.forward_backward(tokens, domain_B), 1e-4)
        wait()

    def with_them() -> None:
        loss_B = torch.zeros(case.rows, dtype=torch.float64, device=case.device)
        row_B = torch.arange(case.rows, device=case.device)
        sum_B, count_B = domain_loss(losses_N, row_B, case.rows)
        loss_B[:] = sum_B / count_B.clamp(min=1)
        sums_K, counts_K = by_domain(sum_B, count_B, domain_B, case.num_domains)
        torch.cat([sums_K, counts_K, loss_B])

    def without() -> None:
        torch.cat(domain_loss(losses_N, domain_B, case.num_domains))

    def on_host() -> None:
        json.dumps(plain(highest_losses(host_B, KEPT)))

    def several(call: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(AT_ONCE):
                call()
            wait()

        return run

    calls = [train, *map(several, (with_them, without, on_host))]
    step_s, with_s, without_s, host_s = map(min, seconds_in_turn(calls, repeats, warmup=2))
    added_s = {"device": max(with_s - without_s, 0.0) / AT_ONCE, "host": host_s / AT_ONCE}
    return {"step_s": step_s, "added_s": added_s, "share": sum(added_s.values()) / step_s}


def main() -> None:
    """Measures the smallest model of the device and writes benchmarks/results/sample_losses.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_device(parser)
    args = parser.parse_args()
    found = measure(CASES[args.device][0], repeats=10)
    write_result("sample_losses", found, [bar("sample losses, of a step", found["share"], MOST)])


if __name__ == "__main__":
    main()

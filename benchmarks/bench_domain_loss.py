"""Does domain_loss on a CPU reach half of the memory bandwidth, and what does it cost per step?

Bandwidth: bytes of losses and ids over the time, against torch's sum of a float32 tensor of as many bytes on the same
threads, taken in turn, for 2^24 tokens, whose bytes exceed the caches. Ids per token in runs of 256, at random, and one
per sequence of 1,024. Best of all repeats as well as the median: on a shared machine only the best says what the code
can do, and there one thread tells more than two, which must both be running.
"""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ado_kernels import domain_loss
from ado_kernels.ops.domain_loss import domain_loss_reference
from benchmarks.common import bar, seconds_in_turn, size, write_result

NUM_TOKENS = size(1 << 24, 1 << 12)
TOKENS_PER_RUN = 256
TOKENS_PER_SEQUENCE = 1024
STEP_TOKENS = 8192
REPEATS = 20


def main() -> None:
    torch.manual_seed(0)
    cases = []
    for threads in sorted({1, torch.get_num_threads()}):
        torch.set_num_threads(threads)
        cases += [{"threads": threads, **_bandwidth(num_domains)} for num_domains in (1, 22, 512, 4096)]
    least = min(min(case["share_of_bandwidth"].values()) for case in cases)
    held = [bar("least share of the memory's bandwidth", least, 0.5, at_least=True)]
    write_result("domain_loss_cpu", {"cases": cases, "per_step": _per_step()}, held)


def _bandwidth(num_domains: int) -> dict:
    losses_N = torch.rand(NUM_TOKENS)
    ids = {
        "ids_in_runs": torch.randint(0, num_domains, (NUM_TOKENS // TOKENS_PER_RUN,)).repeat_interleave(TOKENS_PER_RUN),
        "ids_at_random": torch.randint(0, num_domains, (NUM_TOKENS,)),
        "ids_per_sequence": torch.randint(0, num_domains, (NUM_TOKENS // TOKENS_PER_SEQUENCE,)),
    }
    result: dict = {"num_domains": num_domains, "num_tokens": NUM_TOKENS, "share_of_bandwidth": {}}
    for name, ids_B in ids.items():
        read_bytes = losses_N.nbytes + ids_B.nbytes
        probe = torch.ones(read_bytes // 4)
        calls: list[Callable[[], Any]] = [probe.sum, partial(domain_loss, losses_N, ids_B, num_domains)]
        torch_sum, ours = (
            {"best": read_bytes / min(each) / 1e9, "median": read_bytes / statistics.median(each) / 1e9}
            for each in seconds_in_turn(calls, REPEATS)
        )
        result[name] = {"gb_per_s": ours, "torch_sum_gb_per_s": torch_sum}
        result["share_of_bandwidth"][name] = ours["best"] / torch_sum["best"]
    return result


def _per_step() -> dict:
    losses_N, ids_B = torch.rand(STEP_TOKENS), torch.randint(0, 22, (STEP_TOKENS // 256,))
    ours, plain = seconds_in_turn(
        [lambda: domain_loss(losses_N, ids_B, 22), lambda: domain_loss_reference(losses_N, ids_B, 22)], 20 * REPEATS
    )
    return {"tokens": STEP_TOKENS, "ours_us": min(ours) * 1e6, "plain_torch_us": min(plain) * 1e6}


if __name__ == "__main__":
    main()

"""Does domain_loss on a CPU reach half of the memory bandwidth, and what does it cost per step?

    python -m benchmarks.bench_domain_loss [--repeats 15]

Bandwidth: bytes of losses and ids over the time, against torch's sum of a float32 tensor of the same number of bytes on
the same threads, taken in turn. Best of all repeats as well as the median: on a shared machine only the best, of calls
shorter than a time slice, says what the code can do; there one thread tells more than two, which must both be running.
"""

import argparse
import statistics

import torch

from ado_kernels import domain_loss
from ado_kernels.ops.domain_loss import domain_loss_reference
from benchmarks.common import seconds_in_turn, write_result

NUM_TOKENS = 1 << 22
TOKENS_PER_SEQUENCE = 1024
STEP_TOKENS = 8192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=40)
    repeats = parser.parse_args().repeats
    torch.manual_seed(0)
    cases = []
    for threads in sorted({1, torch.get_num_threads()}):
        torch.set_num_threads(threads)
        cases += [{"threads": threads, **_bandwidth(num_domains, repeats)} for num_domains in (1, 22, 512, 4096)]
    write_result("domain_loss_cpu", {"cases": cases, "per_step": _per_step(repeats * 20)})


def _bandwidth(num_domains: int, repeats: int) -> dict:
    losses_N = torch.rand(NUM_TOKENS)
    ids_N = torch.randint(0, num_domains, (NUM_TOKENS,))
    ids_B = torch.randint(0, num_domains, (NUM_TOKENS // TOKENS_PER_SEQUENCE,))
    probe = torch.ones(3 * NUM_TOKENS)
    calls = [
        probe.sum,
        lambda: domain_loss(losses_N, ids_N, num_domains),
        lambda: domain_loss(losses_N, ids_B, num_domains),
    ]
    read_bytes = [probe.nbytes, losses_N.nbytes + ids_N.nbytes, losses_N.nbytes + ids_B.nbytes]
    names = ["torch_sum", "ids_per_token", "ids_per_sequence"]
    result: dict = {"num_domains": num_domains, "num_tokens": NUM_TOKENS}
    for name, size, seconds in zip(names, read_bytes, seconds_in_turn(calls, repeats), strict=True):
        result[f"{name}_gb_per_s"] = {
            "best": size / min(seconds) / 1e9,
            "median": size / statistics.median(seconds) / 1e9,
        }
    best = result["torch_sum_gb_per_s"]["best"]
    result["share_of_bandwidth"] = {name: result[f"{name}_gb_per_s"]["best"] / best for name in names[1:]}
    return result


def _per_step(repeats: int) -> dict:
    losses_N, ids_B = torch.rand(STEP_TOKENS), torch.randint(0, 22, (STEP_TOKENS // 256,))
    ours, plain = seconds_in_turn(
        [lambda: domain_loss(losses_N, ids_B, 22), lambda: domain_loss_reference(losses_N, ids_B, 22)], repeats
    )
    return {"tokens": STEP_TOKENS, "ours_us": min(ours) * 1e6, "plain_torch_us": min(plain) * 1e6}


if __name__ == "__main__":
    main()

"""What do the per-domain numbers cost? domain_loss alone, against torch's index_add, and beside linear_cross_entropy.

Prints ms, GB/s, and the share that it has of a training call of linear_cross_entropy, of which it is a part. Bar: 1 %
of that call.
"""

import torch

from ado_kernels import domain_loss
from benchmarks.kernels import linear_cross_entropy
from benchmarks.kernels.harness import Bench, Work, judged_ms

SIZES = ((16384, 1), (16384, 512), (16384, 4096), (65536, 22))  # tokens, domains


def run_cost(bench: Bench) -> None:
    """The reduction's time over that of a training call."""
    for shape in linear_cross_entropy.bar_shapes(bench):
        record = {"section": "cost of domains", "case": str(shape), "implementation": "ours"}
        if bench.out_of_time(**record):
            continue
        alone = _compare(bench, shape.num_rows, linear_cross_entropy.NUM_DOMAINS)
        if "ms" not in alone:
            why = f"domain_loss {alone['case']}: {alone.get('skipped', alone.get('failed'))}"
            bench.emit(**record, skipped=why)
            continue
        inputs = linear_cross_entropy.draw(bench, shape)
        whole_ms = bench.time_ms(linear_cross_entropy.training(lambda: linear_cross_entropy.ours, inputs)())
        share = judged_ms(alone) / whole_ms
        bench.emit(**record, ms=judged_ms(alone), share_of_linear_cross_entropy=share)


def run_sizes(bench: Bench) -> None:
    """Other numbers of tokens and domains."""
    for num_tokens, num_domains in () if bench.smoke else SIZES:
        _compare(bench, num_tokens, num_domains)


def _compare(bench: Bench, num_tokens: int, num_domains: int) -> dict:
    """Our record. A read of losses (4 bytes) and ids (8) is all it must do: launches are what it costs."""
    case = f"N={num_tokens} K={num_domains}"
    if not bench.find("domain_loss", case):
        losses = torch.rand(num_tokens, device=bench.device)
        ids = torch.randint(0, num_domains, (num_tokens,), device=bench.device)
        expected = _index_add(losses.cpu(), ids.cpu(), num_domains)

        def examined(result: tuple[torch.Tensor, torch.Tensor]) -> dict:
            sums, counts = (tensor.cpu() for tensor in result)
            right = torch.allclose(sums, expected[0], rtol=1e-11) and torch.equal(counts, expected[1])
            return {"wrong": not right}

        builds = {
            "ours": lambda: lambda: domain_loss(losses, ids, num_domains),
            "torch index_add": lambda: lambda: _index_add(losses, ids, num_domains),
        }
        bench.compare("domain_loss", case, builds, Work(num_bytes=losses.nbytes + ids.nbytes), examined)
    return bench.find("domain_loss", case)


def _index_add(losses: torch.Tensor, ids: torch.Tensor, num_domains: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums and counts by atomics: not deterministic on a GPU."""
    sums = torch.zeros(num_domains, dtype=torch.float64, device=losses.device)
    counts = torch.zeros(num_domains, dtype=torch.int64, device=losses.device)
    return sums.index_add_(0, ids, losses.double()), counts.index_add_(0, ids, torch.ones_like(ids))

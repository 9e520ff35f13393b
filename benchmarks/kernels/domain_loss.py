"""What do the per-domain numbers cost? domain_loss alone, against torch's index_add, and beside linear_cross_entropy.

Prints ms, and the share that it has of a training call of linear_cross_entropy, of which it is a part. Bar: 1 % of that
call.
"""

import torch

from ado_kernels import domain_loss
from benchmarks.kernels import linear_cross_entropy
from benchmarks.kernels.harness import Bench

OTHER_SIZES = ((16384, 1), (16384, 512), (16384, 4096), (65536, 22))  # tokens, domains


def run(bench: Bench) -> None:
    """The size of each training call that has bars, over its time if that was measured; then other sizes."""
    for shape in linear_cross_entropy.bar_shapes(bench):
        alone = compare(bench, shape.num_rows, linear_cross_entropy.NUM_DOMAINS)
        whole = bench.find("linear_cross_entropy", str(shape))
        record = {"section": "cost of domains", "case": str(shape), "implementation": "ours"}
        if "ms" in alone and "ms" in whole:
            bench.emit(**record, ms=alone["ms"], share_of_linear_cross_entropy=alone["ms"] / whole["ms"])
        else:
            bench.emit(**record, skipped="needs the times of domain_loss and linear_cross_entropy")
    for num_tokens, num_domains in () if bench.smoke else OTHER_SIZES:
        compare(bench, num_tokens, num_domains)


def compare(bench: Bench, num_tokens: int, num_domains: int) -> dict:
    """Our record. A read of losses (4 bytes) and ids (8) is all it must do: launches are what it costs."""
    case = f"N={num_tokens} K={num_domains}"
    if not bench.find("domain_loss", case):
        losses = torch.rand(num_tokens, device=bench.device)
        ids = torch.randint(0, num_domains, (num_tokens,), device=bench.device)
        builds = {
            "ours": lambda: lambda: domain_loss(losses, ids, num_domains),
            "torch index_add": lambda: lambda: _index_add(losses, ids, num_domains),
        }
        num_bytes = losses.nbytes + ids.nbytes
        expected = _index_add(losses.cpu(), ids.cpu(), num_domains)
        known = tuple(each.to(bench.device) for each in expected)
        tolerances = (1e-11, 0.0)  # sums in float64, counts
        bench.compare("domain_loss", case, builds, num_bytes=num_bytes, expected=lambda: known, tolerances=tolerances)
    return bench.find("domain_loss", case)


def _index_add(losses: torch.Tensor, ids: torch.Tensor, num_domains: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums and counts by atomics: not deterministic on a GPU."""
    sums = torch.zeros(num_domains, dtype=torch.float64, device=losses.device)
    counts = torch.zeros(num_domains, dtype=torch.int64, device=losses.device)
    return sums.index_add_(0, ids, losses.double()), counts.index_add_(0, ids, torch.ones_like(ids))

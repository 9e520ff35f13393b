"""Per-domain sums of a batch's losses for trainers that split batches themselves, and labels that carry their domain.

Gradient accumulation, pipeline stages, context parallelism and chunked losses split and reorder labels; with the domain
in the upper half of its 64 bits each label still has it where its loss is computed.
"""

import torch

from ado_kernels import domain_loss

_SHIFT = 32  # a label is its token + (1 + its domain) * 2^32; one without a domain, or ignored (-100), is below 2^32


def tag_labels(tokens_BT: torch.Tensor, domain_B: torch.Tensor) -> torch.Tensor:
    """(B, T) int64 labels that carry their rows' domains."""
    return tokens_BT + ((domain_B[:, None] + 1) << _SHIFT)


def untag_labels(label_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens_BT, domain_BT) of labels of any shape; -1: of no domain."""
    tag_BT = (label_BT >> _SHIFT).clamp(min=0)
    return label_BT - (tag_BT << _SHIFT), tag_BT - 1


class DomainSums:
    """Loss sums and token counts (2, K) of this rank's part of a batch, added in any order and taken once a batch.

    Every rank has them on a device of one kind, those without losses too: one collective adds them. They stay in one
    tensor, to which CUDA graphs may add.
    """

    def __init__(self, num_domains: int, device: torch.device):
        self._value_2K = torch.zeros(2, num_domains, dtype=torch.float64, device=device)

    def add(self, loss_BT: torch.Tensor, domain_BT: torch.Tensor) -> None:
        """Adds losses in nats of any shape; domain -1 is left out."""
        self._value_2K += torch.stack(domain_loss(loss_BT, domain_BT, self._value_2K.shape[1]))

    def take(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(sums_K, counts_K) of what was added since the last call."""
        value_2K = self._value_2K.clone()
        self._value_2K.zero_()
        return value_2K[0], value_2K[1]

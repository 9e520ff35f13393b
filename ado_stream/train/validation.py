"""Validation loss per domain: the same held-out samples every time, split over the ranks.

Invariant: the result depends on the model and on the first `max_samples` samples of each domain's val split, not on
the number of ranks (but for the order of float64 sums).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ado_stream.corpus import Corpus
from ado_stream.corpus.tokenizer import Tokenizer
from ado_stream.stream.sample_reader import SampleReader
from ado_stream.train.distributed import World, sum_over_ranks

LossFunction = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor, Tensor]]
_IGNORED, _NO_DOMAIN = -100, -1  # targets and domains that are not counted


@dataclass(frozen=True)
class Validation:
    """Losses of one model; arrays over the domains that were asked for, NaN where a domain has no validation text."""

    domain_loss_K: np.ndarray  # nats per token
    domain_tokens_K: np.ndarray
    domain_bytes_K: np.ndarray  # of text behind those tokens

    @property
    def loss(self) -> float:
        """Mean over all tokens, nats."""
        present_K = self.domain_tokens_K > 0
        return float(np.average(self.domain_loss_K[present_K], weights=self.domain_tokens_K[present_K]))

    @property
    def domain_average(self) -> float:
        """Mean over domains, each counting the same, nats per token."""
        return float(np.nanmean(self.domain_loss_K))

    @property
    def bits_per_byte_K(self) -> np.ndarray:
        """Bits per byte of text, comparable between tokenizers."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.domain_loss_K * self.domain_tokens_K / (math.log(2) * self.domain_bytes_K)


class Validator:
    """The validation samples of a corpus' val split, in memory, and their losses under a model.

    names: the domains to report, in order; max_samples: of each domain, None for all. Every rank holds its own part,
    filled up with rows that do not count: passes of one shape, as many on every rank.
    """

    def __init__(self, corpus: Corpus, names: Sequence[str], max_samples: int | None, world: World, batch_rows: int):
        self._world, self._num_domains, self._rows = world, len(names), batch_rows
        tokens, domains = [], []
        self._bytes_K = np.zeros(len(names), np.int64)
        where = {domain.name: domain for domain in corpus.domains}
        for index, name in enumerate(names):
            if name not in where:
                continue
            reader = SampleReader(where[name])
            num = reader.num_samples if max_samples is None else min(max_samples, reader.num_samples)
            read_NT = reader.read(np.arange(num))
            self._bytes_K[index] = _num_bytes(corpus.tokenizer, read_NT[:, 1:])
            tokens.append(read_NT)
            domains.append(np.full(num, index))
        tokens_NT, domain_N = np.concatenate(tokens), np.concatenate(domains)
        self._num_rounds = math.ceil(len(tokens_NT) / (world.size * batch_rows))
        mine_N = np.flatnonzero((np.arange(len(tokens_NT)) // batch_rows) % world.size == world.rank)
        num_padding = self._num_rounds * batch_rows - len(mine_N)  # so that every pass has the same shape
        self._tokens_NT = F.pad(torch.from_numpy(tokens_NT[mine_N]), (0, 0, 0, num_padding))
        self._targets_NT = self._tokens_NT[:, 1:].clone()
        self._targets_NT[len(mine_N) :] = _IGNORED
        self._domain_N = F.pad(torch.from_numpy(domain_N[mine_N]), (0, num_padding), value=_NO_DOMAIN)

    @torch.no_grad()
    def __call__(self, loss_function: LossFunction, give_up: Callable[[], bool] = lambda: False) -> Validation | None:
        """Losses under `Transformer.loss` or what wraps it; all ranks call, each with as many forward passes.

        give_up: asked before each pass, with the same answer on all ranks; then there is no result.
        """
        device = self._world.device
        totals_2K = torch.zeros((2, self._num_domains), dtype=torch.float64, device=device)
        for number in range(self._num_rounds):
            if give_up():
                return None
            part = slice(number * self._rows, (number + 1) * self._rows)
            tokens_BT, targets_BT, domain_B = (
                each[part].to(device) for each in (self._tokens_NT[:, :-1], self._targets_NT, self._domain_N)
            )
            _, sums_K, counts_K = loss_function(tokens_BT, targets_BT, domain_B, self._num_domains)
            totals_2K += torch.stack([sums_K.double(), counts_K.double()])
        sums_K, counts_K = sum_over_ranks(self._world, totals_2K).cpu().numpy()
        with np.errstate(invalid="ignore"):
            return Validation(sums_K / counts_K, counts_K.astype(np.int64), self._bytes_K)


def _num_bytes(tokenizer: Tokenizer, tokens_NT: np.ndarray) -> int:
    """Bytes of the text behind `tokens_NT`, without end tokens; a character cut by a row's edge counts 3."""
    return sum(len(tokenizer.decode(row[row != tokenizer.end_id]).encode()) for row in tokens_NT)

"""Validation loss per domain, on the same held-out samples every time, split over the ranks.

Invariant: the result depends on the model and on the first `max_samples` samples of each domain's val split, not on
the number of ranks (but for the order of float64 sums).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
import xxhash
from torch import Tensor

from ado_stream.corpus import Corpus
from ado_stream.corpus.tokenizer import Tokenizer
from ado_stream.stream.batch_rows import cut_samples
from ado_stream.stream.device_copies import TokenBatch
from ado_stream.stream.document_positions import IGNORED_TARGET, add_document_columns
from ado_stream.stream.sample_reader import SampleReader
from ado_stream.train.distributed import DistributedContext, sum_over_ranks
from ado_stream.value_types import Floats, Ints

LossFunction = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor, Tensor]]  # Transformer.loss
_HEAD_BYTES = 1024
_NO_DOMAIN = -1  # is not counted


@dataclass(frozen=True)
class ValidationResult:
    """Losses of one model; arrays over the requested domains, NaN where a domain has no validation text."""

    domain_loss_K: Floats  # nats per token
    domain_tokens_K: Ints
    domain_bytes_K: Ints  # of the text of those tokens
    text_K: Sequence[dict[str, str] | None]  # what identifies the text: see record.py

    @property
    def loss(self) -> float:
        """Mean over all tokens, nats."""
        present_K = self.domain_tokens_K > 0
        return float(np.average(self.domain_loss_K[present_K], weights=self.domain_tokens_K[present_K]))

    @property
    def domain_average(self) -> float:
        """Unweighted mean over domains, nats per token."""
        return float(np.nanmean(self.domain_loss_K))

    @property
    def bits_per_byte_K(self) -> Floats:
        """Bits per byte of text, comparable between tokenizers."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.domain_loss_K * self.domain_tokens_K / (math.log(2) * self.domain_bytes_K)


class Validator:
    """The samples of a corpus' val split, in memory, and their losses under a model.

    names: the domains to report, in order; max_samples: of each domain, None for all. rows_per_sample: the model reads
    each in so many rows, as in training. Every rank holds its own rows, padded with rows that do not count: FSDP needs
    as many forward passes on every rank, torch.compile needs one shape.
    """

    def __init__(
        self,
        corpus: Corpus,
        names: Sequence[str],
        max_samples: int | None,
        context: DistributedContext,
        batch_rows: int,
        rows_per_sample: int = 1,
        *,
        token_column: str = "tokens",
        token_dtype: str | None = None,
    ):
        self._context, self._num_domains, self._rows = context, len(names), batch_rows
        tokens, domains = [], []
        self._bytes_K = np.zeros(len(names), np.int64)
        self._text_K: list[dict[str, str] | None] = [None] * len(names)
        domain_by_name = {domain.name: domain for domain in corpus.domains}
        for index, name in enumerate(names):
            if name not in domain_by_name:
                continue
            reader = SampleReader(
                domain_by_name[name], token_column=token_column, token_dtype=token_dtype, seq_len=corpus.seq_len
            )
            num = reader.num_samples if max_samples is None else min(max_samples, reader.num_samples)
            read_NT = reader.read(np.arange(num))
            self._bytes_K[index] = _num_bytes(corpus.tokenizer, read_NT[:, 1:])
            self._text_K[index] = _text_identity(corpus.tokenizer, read_NT)
            tokens.append(read_NT)
            domains.append(np.full(num, index))
        tokens_NT, domain_N = torch.from_numpy(np.concatenate(tokens)), torch.from_numpy(np.concatenate(domains))
        rows: TokenBatch = {"tokens": tokens_NT, "domain": domain_N, "step": 0}
        cut_samples(rows, rows_per_sample)
        num_rows = len(rows["tokens"])
        # Batches go round the ranks, so that each has about as many rows of every domain.
        self._num_rounds = math.ceil(num_rows / (context.size * batch_rows))
        mine_N = torch.from_numpy(np.flatnonzero((np.arange(num_rows) // batch_rows) % context.size == context.rank))
        mine: TokenBatch = {"tokens": rows["tokens"][mine_N], "domain": rows["domain"][mine_N], "step": 0}
        add_document_columns(mine, None, corpus.padding_token)
        targets_NT = mine.get("targets", mine["tokens"][:, 1:])
        num_padding = self._num_rounds * batch_rows - len(mine_N)
        self._tokens_NT = F.pad(mine["tokens"], (0, 0, 0, num_padding))
        self._targets_NT = F.pad(targets_NT, (0, 0, 0, num_padding), value=IGNORED_TARGET)
        self._domain_N = F.pad(mine["domain"], (0, num_padding), value=_NO_DOMAIN)

    @torch.no_grad()
    def __call__(
        self, loss_function: LossFunction, should_stop: Callable[[], bool] = lambda: False
    ) -> ValidationResult | None:
        """Losses under `Transformer.loss` or a wrapper of it; called on all ranks.

        should_stop: called before each forward pass; must return the same on all ranks. True: there is no result.
        """
        device = self._context.device
        totals_2K = torch.zeros((2, self._num_domains), dtype=torch.float64, device=device)
        for number in range(self._num_rounds):
            if should_stop():
                return None
            part = slice(number * self._rows, (number + 1) * self._rows)
            tokens_BT, targets_BT, domain_B = (
                each[part].to(device) for each in (self._tokens_NT[:, :-1], self._targets_NT, self._domain_N)
            )
            _, sums_K, counts_K = loss_function(tokens_BT, targets_BT, domain_B, self._num_domains)
            totals_2K += torch.stack([sums_K.double(), counts_K.double()])
        sums_K, counts_K = sum_over_ranks(self._context, totals_2K).cpu().numpy()
        with np.errstate(invalid="ignore"):
            return ValidationResult(sums_K / counts_K, counts_K.astype(np.int64), self._bytes_K, self._text_K)


def _text_identity(tokenizer: Tokenizer, tokens_NT: Ints) -> dict[str, str]:
    """Hashes of the tokens, and of the text's first bytes, which do not depend on the tokenizer."""
    first = tokens_NT.ravel()[:_HEAD_BYTES]  # a token has at least one byte
    head = tokenizer.decode(first[first != tokenizer.end_id]).encode()[: _HEAD_BYTES // 4]
    return {"tokens": xxhash.xxh64_hexdigest(tokens_NT.tobytes()), "head": xxhash.xxh64_hexdigest(head)}


def _num_bytes(tokenizer: Tokenizer, tokens_NT: Ints) -> int:
    """Bytes of the text of `tokens_NT`, without end tokens; a character cut at a row's edge counts 3, as U+FFFD."""
    return sum(len(tokenizer.decode(row[row != tokenizer.end_id]).encode()) for row in tokens_NT)

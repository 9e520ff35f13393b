"""Rows of another length than the samples': a row of several samples, or several rows of a sample.

Invariant: the pairs of input and target token in a batch are those of its samples, whatever the rows' length: no token
is a target twice or never. So where joined samples meet, the target is the first one's last token and not the token
that follows in the row; `targets` says so. `positions` begin anew there, and where a sample is cut.
"""

from dataclasses import replace

import torch

from ado_stream.errors import ConfigError
from ado_stream.stream.batch_draw import DrawSettings
from ado_stream.stream.device_copies import TokenBatch
from ado_stream.stream.document_positions import add_document_columns


def with_rows_of(row_len: int, sample_len: int, settings: DrawSettings) -> DrawSettings:
    """`settings` for rows of `row_len` tokens and samples of `sample_len`. Raises ConfigError where neither divides."""
    if max(sample_len, row_len) % min(sample_len, row_len):
        multiple = sample_len * max(1, round(row_len / sample_len))
        divisors = (number for number in range(1, sample_len) if sample_len % number == 0)
        nearest = min((multiple, *divisors), key=lambda number: abs(number - row_len))
        raise ConfigError(
            f"sequences of {row_len} tokens from samples of {sample_len}: neither is a multiple of the other; nearest: "
            f"{nearest}."
        )
    samples_per_row, rows_per_sample = max(1, row_len // sample_len), max(1, sample_len // row_len)
    return replace(settings, samples_per_row=samples_per_row, rows_per_sample=rows_per_sample)


def cut_samples(batch: TokenBatch, rows_per_sample: int) -> None:
    """Cuts every sample of a batch into so many rows, each with the first token of the next as its last."""
    if rows_per_sample > 1:
        row_len = (batch["tokens"].shape[1] - 1) // rows_per_sample
        batch["tokens"] = batch["tokens"].unfold(1, row_len + 1, row_len).flatten(0, 1)
        batch["domain"] = batch["domain"].repeat_interleave(rows_per_sample)


def make_rows(
    batch: TokenBatch, settings: DrawSettings, end_token: int | None = None, padding_token: int | None = None
) -> None:
    """Turns a batch of samples into one of rows and adds the columns of add_document_columns, on the batch's device."""
    samples_per_row = settings.samples_per_row
    cut_samples(batch, settings.rows_per_sample)
    add_document_columns(batch, end_token, padding_token)
    if samples_per_row > 1:
        tokens_BT = batch["tokens"]
        row_len = samples_per_row * (tokens_BT.shape[1] - 1)
        batch["targets"] = batch.get("targets", tokens_BT[:, 1:]).reshape(-1, row_len)
        if "positions" in batch:
            batch["positions"] = batch["positions"].reshape(-1, row_len)
        last_R1 = tokens_BT[samples_per_row - 1 :: samples_per_row, -1:]
        batch["tokens"] = torch.cat([tokens_BT[:, :-1].reshape(-1, row_len), last_R1], dim=1)
        batch["domain"] = batch["domain"][::samples_per_row]

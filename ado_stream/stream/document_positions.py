"""Where the documents of packed samples begin, for attention that stays within each, and where padding does."""

import torch
import torch.nn.functional as F

from ado_stream.stream.device_copies import TokenBatch

IGNORED_TARGET = -100  # of torch's cross-entropy


def add_document_columns(batch: TokenBatch, end_token: int | None, padding_token: int | None) -> None:
    """Adds `positions` where `end_token` is given and `targets` where `padding_token` is."""
    if end_token is not None:
        batch["positions"] = document_positions(batch["tokens"][:, :-1], end_token)
    if padding_token is not None:
        batch["targets"] = targets_without_padding(batch["tokens"], padding_token)


def document_positions(tokens: torch.Tensor, end_token: int) -> torch.Tensor:
    """(b, T) int64: the place of every token of `tokens` (b, T) in its document, on their device.

    0 at a row's start and after each `end_token`, which belongs to the document that it ends. Does not wait for a GPU.
    """
    place_T = torch.arange(tokens.shape[1], device=tokens.device)
    begins_BT = F.pad(tokens[:, :-1] == end_token, (1, 0), value=True)
    return place_T - torch.where(begins_BT, place_T, 0).cummax(dim=1).values


def targets_without_padding(tokens: torch.Tensor, end_token: int) -> torch.Tensor:
    """(b, T) int64: the next token of every one of `tokens` (b, T + 1), -100 where that is padding.

    In samples of best-fit packing an end token after an end token is padding.
    """
    ends_BX = tokens == end_token
    return tokens[:, 1:].masked_fill(ends_BX[:, :-1] & ends_BX[:, 1:], IGNORED_TARGET)


def cumulative_lengths(positions: torch.Tensor) -> torch.Tensor:
    """(documents + 1,) int32: where each document begins in the flattened (b T) tokens, and b T at the end.

    What attention kernels for sequences of varying length take as cu_seqlens. Its shape depends on what `positions`
    (b, T) hold: on a GPU the call waits for them.
    """
    begin_N = torch.nonzero(positions.reshape(-1) == 0).squeeze(1)
    return F.pad(begin_N, (0, 1), value=positions.numel()).to(torch.int32)

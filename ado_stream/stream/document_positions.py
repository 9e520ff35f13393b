"""Where the documents of packed samples begin, for attention that stays within each."""

import torch
import torch.nn.functional as F


def document_positions(tokens: torch.Tensor, end_token: int) -> torch.Tensor:
    """(b, T) int64: the place of every token of `tokens` (b, T) in its document, on their device.

    0 at a row's start and after each `end_token`, which belongs to the document that it ends. Does not wait for a GPU.
    """
    place_T = torch.arange(tokens.shape[1], device=tokens.device)
    begins_BT = F.pad(tokens[:, :-1] == end_token, (1, 0), value=True)
    return place_T - torch.where(begins_BT, place_T, 0).cummax(dim=1).values

"""Causal attention, over whole sequences or within each of the documents that a sequence is packed with.

Documents are masked and not rotated anew: the rotary embedding enters attention by differences of positions alone
(arXiv 2104.09864, section 3.2), so within a document the result is that of the document read by itself.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

AttentionMask = Tensor | BlockMask  # (B, 1, T, T) bool, True where a query sees a key; blocks of it on a GPU


def document_mask(tokens_BT: Tensor, end_token: int) -> AttentionMask:
    """The mask of causal attention within documents, for `attention` on the tokens' device.

    A document begins at a row's start and after each `end_token`, which belongs to the document that it ends.
    """
    ends_BT = (tokens_BT == end_token).long()
    document_BT = ends_BT.cumsum(dim=1) - ends_BT  # without slices, whose lengths would be cases to torch.export
    if tokens_BT.is_cuda:
        return _block_mask(document_BT)
    return (document_BT[:, :, None] == document_BT[:, None, :]).tril()[:, None]


def _block_mask(document_BT: Tensor) -> BlockMask:
    def sees(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (document_BT[row, query] == document_BT[row, key])

    num_rows, num_tokens = document_BT.shape
    compiled = _compiled(create_block_mask)
    mask: BlockMask = compiled(sees, num_rows, None, num_tokens, num_tokens, document_BT.device)
    return mask


def attention(query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask | None) -> Tensor:
    """softmax(q k^T / sqrt(Q)) v over (B, H, T, Q), causal; mask: a narrower one, of `document_mask`."""
    if isinstance(mask, BlockMask):
        mixed: Tensor = _compiled(flex_attention)(query, key, value, block_mask=mask)
        return mixed
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None)


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """flex_attention is a fused kernel when compiled, and all (T, T) scores in memory when not."""
    return torch.compile(function, dynamic=False)

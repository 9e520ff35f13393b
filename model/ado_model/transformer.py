"""The decoder-only transformer: tokens in, logits or a loss per domain out.

The layers and their sources are in layers.py. The embedding is also the output layer (arXiv 1608.05859). With targets
`forward` returns the loss, and never holds the (B, T, V) logits.
"""

import math
from collections.abc import Callable
from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from ado_kernels import linear_cross_entropy
from ado_kernels.ops.operands import check_operands
from ado_model.attention import document_mask
from ado_model.layers import Block, RMSNorm, rotary_tables
from ado_model.model_config import ModelConfig


def _restore_after_load(model: nn.Module, _: object) -> None:
    """A hook of the module's file, not a lambda: a model can be pickled."""
    assert isinstance(model, Transformer)
    model._restore_rotary_tables()


Losses = tuple[Tensor, Tensor, Tensor]  # mean loss, per-domain sums (K,), per-domain token counts (K,)


class Transformer(nn.Module):
    """Decoder-only transformer with tied embedding; parameters are float32 and freshly initialised.

    Initialisation: every matrix is normal with mean 0 and standard deviation 0.02, those that write to the residual
    stream (o_proj, down_proj) 0.02 / sqrt(2 L), so that the stream's variance does not grow with depth; norm weights
    are 1. Source: GPT-2 (Radford et al. 2019, section 2.3, and its released code).

    `recompute_blocks = True` trades compute for memory: a block's activations are recomputed in the backward pass.
    """

    rotary_cos: Tensor
    rotary_sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute_blocks = False
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        for name, table in zip(("rotary_cos", "rotary_sin"), self._rotary_tables(), strict=True):
            self.register_buffer(name, table.to(torch.get_default_device(), torch.float32), persistent=False)
        self.register_load_state_dict_post_hook(_restore_after_load)  # type: ignore[no-untyped-call]
        self.initialise()

    @torch.inference_mode(False)
    def _rotary_tables(self) -> tuple[Tensor, Tensor]:
        return rotary_tables(self.config.context_length, self.config.head_width, self.config.rope_theta)

    @torch.no_grad()
    def _restore_rotary_tables(self, hidden: Tensor | None = None) -> None:
        """Makes the tables hold their values again, in the dtype they have, or a wider one of what they are used with.

        They are no part of a state dict. A model that was built on the meta device gets uninitialised memory for them
        from `to_empty`, and keeps them on "meta" under `load_state_dict(assign=True)`.

        hidden: what they are used with; None: the weights, on whose device they are when those have memory.
        """
        user = self.embed_tokens.weight if hidden is None else hidden
        for name, table in zip(("rotary_cos", "rotary_sin"), self._rotary_tables(), strict=True):
            buffer = getattr(self, name)
            device = buffer.device if hidden is None and user.is_meta else user.device
            dtype = torch.promote_types(buffer.dtype, user.dtype)
            if (buffer.device, buffer.dtype) == (device, dtype) and not buffer.is_meta and type(buffer) is Tensor:
                buffer.copy_(table)  # in place: the memory may be shared
            else:
                with torch.inference_mode(False):  # or no later step could be trained with them
                    setattr(self, name, table.to(device, dtype))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy, or what was loaded: files may leave memory out, which is to be filled parameter by parameter."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._restore_rotary_tables()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Transformer":
        """What `to`, `cuda`, `bfloat16`, `to_empty` and their like go through, FSDP's wrappers included."""
        self._restore_rotary_tables()  # before, too: tables still on "meta" would have no data to be copied
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._restore_rotary_tables()
        return self

    @torch.no_grad()
    def initialise(self) -> None:
        """Draws all matrices anew from torch's global generator, in the order of `named_parameters`.

        Sharded ones are drawn whole and handed out by the mesh's first rank: all ranks call it. Shards drawn on their
        own would be the same numbers on ranks of one seed.
        """
        self._restore_rotary_tables()
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
                continue
            writes_to_stream = name.endswith(("o_proj.weight", "down_proj.weight"))
            shrink = math.sqrt(2 * self.config.num_layers) if writes_to_stream else 1.0
            if isinstance(parameter, DTensor):
                whole = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
                whole.normal_(mean=0.0, std=0.02 / shrink)
                parameter.copy_(distribute_tensor(whole, parameter.device_mesh, parameter.placements))
            else:
                parameter.normal_(mean=0.0, std=0.02 / shrink)

    def hidden(self, tokens_BT: Tensor) -> Tensor:
        """Last hidden states (B, T, D) after the final norm. Raises ValueError if T exceeds the context length."""
        check_operands("Transformer", {}, {"tokens": tokens_BT})
        if tokens_BT.dim() != 2:
            raise ValueError(f"tokens must be (B, T), got {tuple(tokens_BT.shape)}")
        num_tokens = tokens_BT.shape[1]
        if num_tokens > self.config.context_length:
            raise ValueError(
                f"sequences of {num_tokens} tokens exceed the model's context of {self.config.context_length}"
            )
        branch: Tensor = self._embed(tokens_BT)
        promoted = torch.promote_types(self.rotary_cos.dtype, branch.dtype)
        if (self.rotary_cos.device, self.rotary_cos.dtype) != (branch.device, promoted):
            self._restore_rotary_tables(branch)  # weights came one by one, or are offloaded when not in use
        cos, sin = self.rotary_cos[:num_tokens], self.rotary_sin[:num_tokens]
        mask = None if self.config.end_token is None else document_mask(tokens_BT, self.config.end_token)
        stream: Tensor | None = None
        for block in self.layers:
            if self.recompute_blocks and torch.is_grad_enabled():
                branch, stream = checkpoint(block, branch, stream, cos, sin, mask, use_reentrant=False)
            else:
                branch, stream = block(branch, stream, cos, sin, mask)
        assert stream is not None
        return self.norm.add_and_norm(branch, stream)[0]

    def _embed(self, tokens_BT: Tensor) -> Tensor:
        """Embeddings (B, T, D); under autocast in its dtype, so that the residual stream is as narrow as the rest."""
        embedded: Tensor = self.embed_tokens(tokens_BT.long())  # nn.Embedding takes int32 and int64 alone
        check_operands("Transformer", {"embed_tokens": embedded.detach()}, {"tokens": tokens_BT})  # it does not
        device = embedded.device.type
        if embedded.dtype == torch.float64 or device == "meta" or not torch.is_autocast_enabled(device):
            return embedded  # autocast leaves float64 alone; "meta" has none, and the question raises
        return embedded.to(torch.get_autocast_dtype(device))

    @overload
    def forward(self, tokens_BT: Tensor) -> Tensor: ...
    @overload
    def forward(self, tokens_BT: Tensor, targets_BT: Tensor, domain_ids_B: Tensor, num_domains: int) -> Losses: ...
    def forward(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor | None = None,
        domain_ids_B: Tensor | None = None,
        num_domains: int = 1,
    ) -> Tensor | Losses:
        """Logits (B, T, V) of the next token for tokens (B, T) int64; with targets, what `loss` returns.

        DistributedDataParallel, fully_shard and torch.compile act on calls of the module: call what they return with
        targets. Another method, or `.module`, would bypass the exchange of gradients or the compiled code.
        """
        hidden_BTD = self.hidden(tokens_BT)
        if targets_BT is None:
            return F.linear(hidden_BTD, self.embed_tokens.weight)
        if domain_ids_B is None:
            raise ValueError("targets without domain_ids: give the domain of each row, (B,) int64")
        if targets_BT.shape != tokens_BT.shape or (
            domain_ids_B.shape != tokens_BT.shape[:1] and domain_ids_B.shape != tokens_BT.shape
        ):
            raise ValueError(
                f"tokens {tuple(tokens_BT.shape)} need targets of their shape and domain_ids ({len(tokens_BT)},), one "
                f"for each row, got {tuple(targets_BT.shape)} and {tuple(domain_ids_B.shape)}"
            )
        return linear_cross_entropy(
            hidden_BTD.flatten(0, 1), self.embed_tokens.weight, targets_BT.reshape(-1), domain_ids_B, num_domains
        )

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor, domain_ids_B: Tensor, num_domains: int) -> Losses:
        """(mean cross-entropy in nats per kept token, per-domain sums (K,), per-domain token counts (K,)).

        tokens, targets: (B, T) int64, targets of -100 are not counted; domain_ids: (B,) int64 in [0, K). Gradients
        flow through the mean only.
        """
        losses: Losses = self(tokens_BT, targets_BT, domain_ids_B, num_domains)  # a call, so that hooks run
        return losses

"""Megatron-LM (`--dataloader-type external`), or a loop on megatron-core, with an AdaptiveLoader: MegatronData.

It is the external data loader of `pretrain`, and has `get_batch` and `loss` for the forward step. Rank 0 of each tensor
parallel group of the first and the last pipeline stage reads; the rest of the group get its rows by broadcast.

The last stage has the losses; the first asks for the next batch, and it alone saves. Each observes a batch in a thread
from its last micro-batch on: where the first stage waited for the sums, the last would wait for its activations.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state as groups
from megatron.core.num_microbatches_calculator import get_num_microbatches

from ado_stream.adapters.domain_sums import DomainSums
from ado_stream.adapters.micro_batches import num_parts_of, refuse_targets
from ado_stream.errors import ConfigError, ResumeError
from ado_stream.loader import AdaptiveLoader
from ado_stream.reduction import to_host_later

_WAIT_S = 600.0  # for a batch's losses
_KEYS = ("tokens", "labels", "loss_mask", "position_ids", "domain")


class MegatronData:
    """All ranks make one, after Megatron's parallel groups; with `pretrain`, in a provider with is_distributed = True.

    make_loader: called as make_loader(rank=, world_size=, group=) on ranks that read, the first two for the data set,
    the last for the loader. micro_batch_size, seq_length: Megatron's.
    Raises ConfigError where sizes differ, and for virtual pipeline stages, each of which would read by itself.
    """

    def __init__(self, make_loader: Callable[..., AdaptiveLoader], micro_batch_size: int, seq_length: int):
        if groups.get_virtual_pipeline_model_parallel_world_size() is not None:
            raise ConfigError("MegatronData cannot serve virtual pipeline stages; unset them.")
        self.loader: Any = None  # an AdaptiveLoader on ranks that read
        self._row_shape = (micro_batch_size, seq_length + 2)
        self._device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else "cpu"
        self._is_last = groups.is_pipeline_last_stage()
        self._has_batches = self._is_last or groups.is_pipeline_first_stage()
        reads = self._has_batches and groups.get_tensor_model_parallel_rank() == 0
        all_read = [False] * dist.get_world_size()
        dist.all_gather_object(all_read, reads)
        group = dist.new_group([rank for rank, each in enumerate(all_read) if each], backend="gloo")
        if not reads:
            return
        rank, world_size = groups.get_data_parallel_rank(), groups.get_data_parallel_world_size()
        self.loader = make_loader(rank=rank, world_size=world_size, group=group)
        refuse_targets(self.loader, "Megatron-LM")
        if (found := self.loader.dataset.batch_seq_len) != seq_length:
            raise ConfigError(f"--seq-length is {seq_length}, that of the data set {found}.")
        self._num_parts = num_parts_of(self.loader, micro_batch_size, "--micro-batch-size")
        self._parts: list[dict[str, Any]] = []  # of the current batch, not handed out
        self._sums = DomainSums(len(self.loader.dataset.names), torch.device(self._device))
        self._thread = ThreadPoolExecutor(1, "ado-observe")
        self._observation: Future[None] | None = None  # of the batch last handed out

    def __next__(self) -> dict[str, Any]:
        """A part of the loader's batch, on the host: tokens (b, T + 1), domain (b,), part; for ranks that read."""
        if not self._parts:
            if get_num_microbatches() != self._num_parts:
                raise ConfigError(
                    f"a step has {get_num_microbatches()} micro-batches, a batch of the data set {self._num_parts}; "
                    "make --global-batch-size that of the data set, without --rampup-batch-size."
                )
            self._wait()
            batch = next(iter(self.loader))
            parts = zip(*(batch[key].chunk(self._num_parts) for key in ("tokens", "domain")), strict=True)
            self._parts = [{"tokens": tokens, "domain": rows, "part": n} for n, (tokens, rows) in enumerate(parts)]
        return self._parts.pop(0)

    def get_batch(self, iterator: Iterator[dict[str, Any]]) -> dict[str, Any]:
        """Megatron's inputs of a micro-batch, and each token's domain; None of them in stages that need none.

        iterator: Megatron's over this object, or one over {"tokens": (b, T + 1)} for validation.
        """
        batch: dict[str, Any] = dict.fromkeys((*_KEYS, "attention_mask", "part"))
        if not self._has_batches:
            return batch
        row_BX = torch.empty(self._row_shape, dtype=torch.int64, device=self._device)  # X: T + 1 tokens, then a domain
        if self.loader is not None:
            part = next(iterator)
            row_BX[:, :-1], row_BX[:, -1] = part["tokens"], part.get("domain", -1)
            batch["part"] = part.get("part")
        source, group = groups.get_tensor_model_parallel_src_rank(), groups.get_tensor_model_parallel_group()
        dist.broadcast(row_BX, source, group=group)
        tokens_BT, domain_BT = row_BX[:, :-2], row_BX[:, -1:].expand(-1, self._row_shape[1] - 2)
        position_BT = torch.arange(tokens_BT.shape[1], device=self._device).expand_as(tokens_BT)
        mask_BT = torch.ones_like(tokens_BT, dtype=torch.float32)
        columns = map(_on_this_context_rank, (tokens_BT, row_BX[:, 1:-1], mask_BT, position_BT, domain_BT))
        batch.update(zip(_KEYS, columns, strict=True))
        if not self._is_last:
            self._end_part(batch["part"])
        return batch

    def loss(self, batch: dict[str, Any], output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        """(summed loss, number of tokens, what Megatron logs) of token losses; in training they are added by domain."""
        loss_N, mask_N = output.float().flatten(), batch["loss_mask"].flatten()
        loss, num_tokens = (loss_N * mask_N).sum(), mask_N.sum().to(torch.int)
        if torch.is_grad_enabled() and batch["part"] is not None:
            if batch["part"] == 0:
                self._sums.take()  # of an iteration that Megatron runs again
            self._sums.add(loss_N, batch["domain"].flatten())
            self._end_part(batch["part"])
        return loss, num_tokens, {"lm loss": torch.stack([loss.detach(), num_tokens])}

    def save_state(self) -> dict[str, Any]:
        """The loader's state, which Megatron-LM saves below `--dataloader-save`; after a whole batch."""
        if self._parts:
            raise ConfigError("a save in the middle of a batch of the data set.")
        self._wait()
        return {"adaptive_loader": self.loader.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues on all ranks from `state`, saved by any number of them."""
        if self.loader is not None:
            self._wait()
            self.loader.load_state_dict(state["adaptive_loader"])
            self._parts = []

    def load(self, folder: str, iteration: int) -> None:
        """`load_state` of what Megatron-LM saved below `folder`. Raises ResumeError when there is nothing."""
        name = f"iter_{iteration:07d}/mp_rank_00*/train_dataloader_dprank000.pt"
        path = next(Path(folder).glob(name), None)
        if path is None:
            raise ResumeError(f"{folder}/{name} is missing; was the checkpoint saved with --dataloader-save?")
        self.load_state(torch.load(path)["dataloader_state_dict"])

    def _end_part(self, part: int | None) -> None:
        """Starts to observe the batch after its last part, once: Megatron may run an iteration again."""
        if self.loader is not None and part == self._num_parts - 1 and self._observation is None:
            read, observe = to_host_later(torch.stack(self._sums.take())), self.loader.observe
            self._observation = self._thread.submit(lambda: observe(*torch.from_numpy(read())))

    def _wait(self) -> None:
        if self._observation is not None:
            self._observation.result(_WAIT_S)
            self._observation = None


def _on_this_context_rank(column_BT: torch.Tensor) -> torch.Tensor:
    """Chunks r and 2 C - 1 - r of 2 C, for rank r of C: Megatron's, which give each rank as much causal attention."""
    size, rank = groups.get_context_parallel_world_size(), groups.get_context_parallel_rank()
    chunks = column_BT.chunk(2 * size, dim=1)
    return column_BT.contiguous() if size == 1 else torch.cat([chunks[rank], chunks[2 * size - 1 - rank]], dim=1)

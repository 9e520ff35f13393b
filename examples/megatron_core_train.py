"""A small GPT of megatron-core on a prepared corpus, with tensor, pipeline and data parallel ranks.

    torchrun --nproc-per-node 4 examples/megatron_core_train.py CORPUS OUT --tensor 2 --pipeline 2

The same command again resumes. `forward_step` and MegatronData are as in a script for Megatron-LM's `pretrain`; the
loop around them is that of megatron-core alone. Without a GPU, `run_on_cpu` stands for what it asks of one.
"""

import argparse
import contextlib
import os
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state as groups
from megatron.core import tensor_parallel
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.num_microbatches_calculator import get_num_microbatches, init_num_microbatches_calculator
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.rerun_state_machine import RerunDataIterator
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.overrides import TorchFunctionMode

import ado_stream as ado
from ado_stream.adapters.megatron import MegatronData

STEPS, SAVE_EVERY, BATCH_SIZE, MICRO_BATCH_SIZE = 20, 10, 8, 2


class CudaIsCpu(TorchFunctionMode):
    """Tensors that megatron-core makes on "cuda" are made on the CPU."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if kwargs and kwargs.get("device") == "cuda":
            kwargs = {**kwargs, "device": "cpu"}
        return function(*args, **(kwargs or {}))


def run_on_cpu() -> contextlib.AbstractContextManager:
    torch.cuda.current_device, torch.cuda.synchronize = lambda: "cpu", lambda *device: None
    tensor_parallel.get_cuda_rng_tracker().fork = contextlib.nullcontext
    return CudaIsCpu()


def make_model(vocab_size: int, seq_len: int) -> GPTModel:
    config = TransformerConfig(
        num_layers=2,
        hidden_size=32,
        num_attention_heads=4,
        tensor_model_parallel_size=groups.get_tensor_model_parallel_world_size(),
        pipeline_model_parallel_size=groups.get_pipeline_model_parallel_world_size(),
        pipeline_dtype=torch.float32,
        calculate_per_token_loss=True,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        use_cpu_initialization=True,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        bias_activation_fusion=False,
        persist_layer_norm=False,
        gradient_accumulation_fusion=False,
    )
    stages = {"pre_process": groups.is_pipeline_first_stage(), "post_process": groups.is_pipeline_last_stage()}
    model = GPTModel(config, get_gpt_layer_local_spec(), vocab_size, seq_len, **stages)
    return model.cuda() if torch.cuda.is_available() else model


def add_gradients(model: GPTModel) -> None:
    """Over data parallel ranks; losses are sums, so that their gradients are."""
    for each in model.parameters():
        if each.grad is not None:
            dist.all_reduce(each.grad, group=groups.get_data_parallel_group())


def train(corpus: ado.Corpus, out: Path) -> None:
    def make_loader(*, rank: int, world_size: int, group: dist.ProcessGroup) -> ado.AdaptiveLoader:
        dataset = ado.AdaptiveStreamingDataset(corpus, global_batch_size=BATCH_SIZE, rank=rank, world_size=world_size)
        policy = {"name": "ado", "options": {"start_step": 4, "ignore_steps": 0, "interval": 4, "total_steps": STEPS}}
        return ado.AdaptiveLoader(dataset, policy, group=group)

    data = MegatronData(make_loader, MICRO_BATCH_SIZE, corpus.seq_len)
    torch.manual_seed(groups.get_pipeline_model_parallel_rank())
    padded_vocab_size = -(-corpus.tokenizer.vocab_size // 128) * 128  # as Megatron-LM does, for tensor parallel ranks
    model = make_model(padded_vocab_size, corpus.seq_len)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def forward_step(iterator, model):
        batch = data.get_batch(iterator)
        output = model(batch["tokens"], batch["position_ids"], batch["attention_mask"], labels=batch["labels"])
        return output, partial(data.loss, batch)

    def files(step: int) -> tuple[Path, Path]:
        """Megatron-LM's file of the data, which one rank writes, and this rank's part of the model."""
        folder = out / f"iter_{step:07d}" / "mp_rank_00"
        return folder / "train_dataloader_dprank000.pt", folder / f"model{dist.get_rank()}.pt"

    latest = max((int(each.parent.name[5:]) for each in out.glob("iter_*/complete")), default=0)
    if latest:
        data.load(str(out), latest)
        model.load_state_dict(torch.load(files(latest)[1]))
    iterator = RerunDataIterator(data)
    forward_backward = get_forward_backward_func()
    for step in range(latest, STEPS):
        optimizer.zero_grad()
        logged = forward_backward(
            forward_step_func=forward_step,
            data_iterator=iterator,
            model=[model],
            num_microbatches=get_num_microbatches(),
            seq_length=corpus.seq_len,
            micro_batch_size=MICRO_BATCH_SIZE,
            forward_only=False,
        )
        iterator.advance()
        add_gradients(model)
        optimizer.step()
        if logged:  # on the last stage
            loss, num_tokens = sum(each["lm loss"] for each in logged).tolist()
            print(f"step {step}, rank {dist.get_rank()}: loss sum {loss!r} of {int(num_tokens)} tokens", flush=True)
        if (step + 1) % SAVE_EVERY == 0:
            data_file, model_file = files(step + 1)
            model_file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(model.state_dict(), model_file)
            if groups.is_pipeline_first_stage() and groups.get_tensor_model_parallel_rank() == 0:
                state = data.save_state()  # as Megatron-LM: on the first stage alone
                if dist.get_rank() == 0:
                    torch.save({"dataloader_state_dict": state}, data_file)
            dist.barrier()
            (out / f"iter_{step + 1:07d}" / "complete").touch()
    if data.loader is not None:
        data.loader.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("corpus")
    parser.add_argument("out", type=Path)
    parser.add_argument("--tensor", type=int, default=1)
    parser.add_argument("--pipeline", type=int, default=1)
    args = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if on_gpu else "gloo")
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    groups.initialize_model_parallel(args.tensor, args.pipeline)
    num_data_ranks = groups.get_data_parallel_world_size()
    init_num_microbatches_calculator(dist.get_rank(), None, BATCH_SIZE, MICRO_BATCH_SIZE, num_data_ranks)
    with contextlib.nullcontext() if on_gpu else run_on_cpu():
        train(ado.open_corpus(args.corpus), args.out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

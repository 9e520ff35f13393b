"""A small OLMo-core transformer on a prepared corpus, its checkpoints with the data's position and the policy's state.

python examples/olmo_core_train.py CORPUS OUT      # the same command again resumes; several ranks: torchrun
"""

import os
import sys
from pathlib import Path

from olmo_core.nn.transformer import TransformerConfig
from olmo_core.optim import AdamWConfig
from olmo_core.train import Duration, TrainerConfig, prepare_training_environment, teardown_training_environment
from olmo_core.train.callbacks import CheckpointerCallback
from olmo_core.train.train_module import TransformerTrainModuleConfig
from olmo_core.utils import get_default_device, seed_all

import ado_stream as ado
from ado_stream.adapters.olmo_core import AdaptiveCallback, AdaptiveDataLoader

STEPS = 20


def main(corpus_path: str, out: str) -> None:
    device = get_default_device()
    if "RANK" in os.environ:
        prepare_training_environment(backend="nccl" if device.type == "cuda" else "gloo")
    seed_all(0)
    corpus = ado.open_corpus(corpus_path)
    dataset = ado.AdaptiveStreamingDataset(corpus, global_batch_size=8)
    policy = {"name": "ado", "options": {"start_step": 4, "ignore_steps": 0, "interval": 4, "total_steps": STEPS}}
    data_loader = AdaptiveDataLoader(ado.AdaptiveLoader(dataset, policy), work_dir=Path(out) / "work")

    model = TransformerConfig.llama_like(
        vocab_size=corpus.tokenizer.vocab_size, d_model=64, n_layers=1, n_heads=2
    ).build(init_device="cpu")
    train_module = TransformerTrainModuleConfig(
        rank_microbatch_size=data_loader.rank_batch_size // 2,  # in tokens: two micro-batches
        max_sequence_length=corpus.seq_len,
        optim=AdamWConfig(lr=1e-2),
    ).build(model, device=device)
    trainer = (
        TrainerConfig(save_folder=f"{out}/checkpoints", max_duration=Duration.steps(STEPS), device=device.type)
        .with_callback("adaptive", AdaptiveCallback())
        .with_callback("checkpointer", CheckpointerCallback(save_interval=10))
        .build(train_module, data_loader)
    )
    trainer.maybe_load_checkpoint()
    trainer.fit()
    data_loader.loader.close()
    if "RANK" in os.environ:
        teardown_training_environment()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""torchtitan's debug model on a prepared corpus, its checkpoints with the data's position and the policy's state.

    torchrun --nproc-per-node 2 examples/torchtitan_train.py CORPUS OUT      # the same command again resumes

A model of yours: replace `llama3_debugmodel`. torchtitan needs a GPU; without one, `run_on_cpu` stands for it.
"""

import os
import sys
from dataclasses import dataclass

import torch

import ado_stream as ado

STEPS = 20


def run_on_cpu() -> None:
    """What torchtitan 0.3 asks of a device; before its first import."""
    import torch._utils

    torch._utils._get_available_device_type = lambda: "cpu"
    import torchtitan.components.metrics
    import torchtitan.distributed.utils

    class NoDeviceMemory:
        device_name = "cpu"

        def get_peak_stats(self):
            return torchtitan.components.metrics.DeviceMemStats(0, 0, 0, 0, 0, 0)

        def reset_peak_stats(self):
            pass

    torchtitan.components.metrics.build_device_memory_monitor = NoDeviceMemory
    torchtitan.distributed.utils.set_pg_timeouts = lambda **groups: None  # would synchronise the device


def main(corpus_path: str, out: str) -> None:
    if not torch.cuda.is_available():
        run_on_cpu()
    from torchtitan.components.tokenizer import BaseTokenizer
    from torchtitan.models.common import ScaledDotProductAttention
    from torchtitan.models.llama3.config_registry import llama3_debugmodel

    from ado_stream.adapters.torchtitan import adaptive_config

    corpus = ado.open_corpus(corpus_path)
    batch_size = 8

    def make_loader(*, rank: int, world_size: int) -> ado.AdaptiveLoader:
        dataset = ado.AdaptiveStreamingDataset(corpus, global_batch_size=batch_size, rank=rank, world_size=world_size)
        policy = {"name": "ado", "options": {"start_step": 4, "ignore_steps": 0, "interval": 4, "total_steps": STEPS}}
        return ado.AdaptiveLoader(dataset, policy)

    class NoTokenizer(BaseTokenizer):
        """The corpus is tokenised; torchtitan's trainer builds a tokenizer all the same."""

        @dataclass(kw_only=True, slots=True)
        class Config(BaseTokenizer.Config):
            pass

        def __init__(self, config: Config, **options: object):
            super().__init__()

        encode = decode = get_vocab_size = lambda self, *arguments, **options: corpus.tokenizer.vocab_size

    config = llama3_debugmodel()
    config.tokenizer, config.validator.enable, config.dump_folder = NoTokenizer.Config(), False, out
    config.training.seq_len, config.training.steps = corpus.seq_len, STEPS
    config.training.global_batch_size = batch_size
    config.training.local_batch_size = batch_size // int(os.environ["WORLD_SIZE"])
    config.checkpoint.enable, config.checkpoint.interval, config.debug.seed = True, 10, 0
    if not torch.cuda.is_available():
        config.training.disable_cuda_graphs = True
        for layer in config.model_spec.model.layers:
            layer.attention.inner_attention = ScaledDotProductAttention.Config()
    trainer = adaptive_config(config, make_loader).build()
    trainer.train()
    trainer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])

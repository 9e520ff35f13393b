"""How fast are tokens read where they lie? Megatron's and OLMo's files against MDS shards and Megatron's GPTDataset.

Prints samples/s: 8 domains, samples of 1,025 uint16 tokens, batch 64, documents of 600 tokens on average, all in the
page cache. Bars: files of tokens as fast as raw MDS shards, within a noise of 10 %; at least 5 times the better of
GPTDataset in a DataLoader with 0 and 2 workers. Needs megatron-core; without it the second bar is left out. All in one
run on the same tokens, each reader in a process of its own; `--rounds N` of it (5).
"""

import argparse
import importlib.util
import itertools
import statistics
import struct
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np

import ado_stream as ado
from benchmarks.common import bar, rounds_in_turn, size, write_result
from benchmarks.stream_data import BATCH, NUM_DOMAINS, ROW_TOKENS, timed

SAMPLES, SEQ_LEN, END = size(6000, 40), ROW_TOKENS - 1, 0
TIMED = size((200, 3000), (1, 2))
FORMATS = ("mds", "megatron", "npy")


def write_formats(root: Path) -> None:
    """The same tokens in every format: ROOT/FORMAT/NUMBER."""
    from streaming import MDSWriter

    for name in FORMATS:
        (root / name).mkdir()
    columns = {"tokens": f"ndarray:uint16:{ROW_TOKENS}"}
    for number in range(NUM_DOMAINS):
        rng = np.random.default_rng(number)
        lengths = np.maximum(1, rng.geometric(1 / 600, SAMPLES * SEQ_LEN // 600))
        tokens = np.minimum(rng.zipf(1.3, int(lengths.sum())), 50303).astype(np.uint16)
        tokens[np.cumsum(lengths) - 1] = END
        tokens.tofile(root / "npy" / f"{number}.npy")
        tokens.tofile(root / "megatron" / f"{number}.bin")
        begins, bounds = 2 * (np.cumsum(lengths) - lengths), np.arange(len(lengths) + 1)
        head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, len(lengths), len(bounds))
        arrays = (lengths.astype("<i4"), begins.astype("<i8"), bounds.astype("<i8"))
        (root / "megatron" / f"{number}.idx").write_bytes(head + b"".join(each.tobytes() for each in arrays))
        out = str(root / "mds" / str(number))
        with MDSWriter(out=out, columns=columns, size_limit=1 << 26, hashes=["xxh64"]) as writer:
            for at in range(0, len(tokens) - SEQ_LEN, SEQ_LEN):
                writer.write({"tokens": tokens[at : at + ROW_TOKENS]})


def time_ours(asked_at: float, root: Path, kind: str, prefetch: int, warmup: int, count: int) -> tuple[float, float]:
    """Ours of one format, as `timed`; natural mixture."""
    names, ending = range(NUM_DOMAINS), ".npy" if kind == "npy" else ""
    domains = [ado.Domain(str(n), local=f"{root}/{kind}/{n}{ending}", format=kind, token_dtype="uint16") for n in names]
    dataset = ado.AdaptiveStreamingDataset(domains, BATCH, mixture_lag=None, seq_len=SEQ_LEN)
    dataset.start(prefetch, io_threads=4)
    try:
        return timed(asked_at, iter(dataset), warmup, count)
    finally:
        dataset.close()


def time_megatron(asked_at: float, root: Path, warmup: int, count: int) -> tuple[float, float]:
    """Megatron's blend of GPTDatasets, by size, in a DataLoader with 0 or 2 workers: the faster, as `timed`."""
    import torch.distributed as dist
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from torch.utils.data import DataLoader

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    config: Any = GPTDatasetConfig(
        random_seed=17,
        sequence_length=SEQ_LEN,
        blend=([f"{root}/megatron/{number}" for number in range(NUM_DOMAINS)], None),
        split="1,0,0",
        path_to_cache=str(root / "cache"),
        tokenizer=types.SimpleNamespace(eod=END, pad=-1, vocab_size=50304, unique_identifiers={"name": "none"}),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    (dataset, *_) = BlendedMegatronDatasetBuilder(GPTDataset, [SAMPLES * 7, 0, 0], lambda: True, config).build()
    loaders = (DataLoader(dataset, batch_size=BATCH, num_workers=workers) for workers in (0, 2))
    endless = (itertools.chain.from_iterable(itertools.repeat(loader)) for loader in loaders)
    return max((timed(asked_at, batches, warmup, count) for batches in endless), key=lambda found: found[1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    has_megatron = importlib.util.find_spec("megatron") is not None
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_formats(root)
        contestants: dict[str, tuple[Any, ...]] = {kind: (time_ours, root, kind, 0, *TIMED) for kind in FORMATS}
        if has_megatron:
            contestants["GPTDataset"] = (time_megatron, root, 10, 100)
        rates = {name: [rate for _, rate in found] for name, found in rounds_in_turn(contestants, rounds).items()}
    median = {name: statistics.median(values) for name, values in rates.items()}
    limits = {("megatron", "mds"): 0.9, ("npy", "mds"): 0.9}
    if has_megatron:
        limits["megatron", "GPTDataset"] = 5
    ratios = {f"{ours}_over_{other}": median[ours] / median[other] for ours, other in limits}
    bars = [bar(name, ratios[name], limit, at_least=True) for name, limit in zip(ratios, limits.values(), strict=True)]
    write_result("tokens_in_place", {"samples_per_s": median, "rounds": rates, **ratios}, bars)


if __name__ == "__main__":
    main()

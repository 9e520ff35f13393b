"""How much slower is `ado-stream train` than a plain PyTorch loop of the same model?

Windows of steps take turns: those of `train` with everything in it (shards, per-domain sums, policy, clipping, the run
record), and those of a loop that a user would write: the same parameters under torch's own functions, tokens that lie
in memory, cross-entropy of full logits, clipping, AdamW. Prints the median ratio of paired windows with its 95 %
interval, in processor seconds of all threads, and the parts of a step that the run recorded. The model is nano at
sequence 256 on the CPU. Bar: a step of `train` takes at most 1.05 times the processor time.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench_train import write_corpus
from benchmarks.common import bar, in_own_process, size, write_result

ROWS, NUM_TOKENS, NUM_DOMAINS = size((8, 256, 8), (2, 16, 2))
MOST = 1.05


def measure(pairs: int, steps: int, preset: str = "nano") -> dict[str, Any]:
    """The ratio of `pairs` of windows of `steps` steps."""
    import torch

    from ado_model import Transformer
    from ado_stream.record import read_run
    from ado_stream.train.cpu_tuning import keep_freed_memory
    from ado_stream.train.distributed import DistributedContext
    from ado_stream.train.resume import ResumePoint
    from ado_stream.train.run_config import load_config
    from ado_stream.train.stages import stage_at
    from ado_stream.train.trainer import Trainer

    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        corpus = write_corpus(Path(folder), NUM_DOMAINS, NUM_TOKENS)
        total = (pairs + 1) * steps
        config = load_config(
            {
                "corpus": corpus.url,
                "run_dir": f"{folder}/run",
                "model": {"preset": preset},
                "data": {"global_batch_size": ROWS},
                "policy": {"name": "target"},
                "train": {"steps": max(100, total), "device": "cpu"},
                "log": {"every_steps": 10_000},
            }
        )
        with Trainer(config, stage_at(config, 0), DistributedContext(0, 1, torch.device("cpu"))) as trainer:
            trainer.start(ResumePoint(continues_run=True))
            batches = iter(trainer._loader)
            plain = plain_loop(Transformer(trainer._components.model), corpus.tokenizer.vocab_size)
            pair_s = windows_in_turn(lambda: trainer._train_step(batches), plain, pairs, steps)
            trainer._log.flush()
        lines = read_run(f"{folder}/run")[1]["step"][steps:]
    ratio_R = pair_s[:, 0] / pair_s[:, 1]
    drawn = np.random.default_rng(0).choice(ratio_R, (4000, len(ratio_R)))
    return {
        "ratio": float(np.median(ratio_R)),
        "ratio_interval_95": np.percentile(np.median(drawn, axis=1), [2.5, 97.5]).tolist(),
        "train_step_s": float(np.median(pair_s[:, 0])),
        "plain_step_s": float(np.median(pair_s[:, 1])),
        "train_parts_s": {
            part: float(np.median([line["time_s"][part] for line in lines])) for part in lines[0]["time_s"]
        },
    }


def windows_in_turn(train: Callable[[], None], plain: Callable[[], None], pairs: int, steps: int) -> np.ndarray:
    """(R, 2) processor seconds a step of both, the order alternating; one pair before them is not counted."""
    pair_s = np.empty((pairs + 1, 2))
    for number in range(pairs + 1):
        for which in (0, 1) if number % 2 else (1, 0):
            began = time.process_time()
            for _ in range(steps):
                (train, plain)[which]()
            pair_s[number, which] = (time.process_time() - began) / steps
    return pair_s[1:]


def plain_loop(model: Any, vocab_size: int) -> Callable[[], None]:
    """One step of the loop that a user would write, over the parameters of `model`."""
    import torch
    import torch.nn.functional as F

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tokens_NT = torch.randint(vocab_size, (64, NUM_TOKENS + 1))

    def step() -> None:
        tokens_BT = tokens_NT[torch.randint(len(tokens_NT), (ROWS,))]
        logits_BTV = plain_logits(model, tokens_BT[:, :-1])
        F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def plain_logits(model: Any, tokens_BT: Any) -> Any:
    """(B, T, V) logits of a Transformer by torch's own functions."""
    import torch
    import torch.nn.functional as F

    cos, sin = model.rotary_cos[: tokens_BT.shape[1], None], model.rotary_sin[: tokens_BT.shape[1], None]

    def norm(x: Any, layer: Any) -> Any:
        return F.rms_norm(x, x.shape[-1:], layer.weight, layer.eps)

    def rotate(x: Any) -> Any:
        low, high = x.chunk(2, -1)
        return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)

    x = model.embed_tokens(tokens_BT)
    for block in model.layers:
        attention, mlp = block.self_attn, block.mlp
        normed = norm(x, block.input_layernorm)
        query, key, value = (
            projection(normed).unflatten(-1, (attention.num_heads, -1))
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        query, key = rotate(norm(query, attention.q_norm)), rotate(norm(key, attention.k_norm))
        query, key, value = (each.transpose(1, 2) for each in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + attention.o_proj(mixed.transpose(1, 2).flatten(-2))
        normed = norm(x, block.post_attention_layernorm)
        x = x + mlp.down_proj(F.silu(mlp.gate_proj(normed)) * mlp.up_proj(normed))
    return norm(x, model.norm) @ model.embed_tokens.weight.T


def main() -> None:
    """Measures in a process of its own and writes benchmarks/results/loop.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=size(40, 2), help="of windows (%(default)s)")
    parser.add_argument("--steps", type=int, default=size(4, 1), help="of a window (%(default)s)")
    args = parser.parse_args()
    found = in_own_process(measure, args.pairs, args.steps)
    write_result("loop", found, [bar("a step of train, in steps of the plain loop", found["ratio"], MOST)])


if __name__ == "__main__":
    main()

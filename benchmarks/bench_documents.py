"""What do document boundaries, fill-in-the-middle and rows of another length cost, in the loader and in a step?

Loader: batches from local raw shards with `positions`, with half of all documents reordered, and of as many tokens in
rows of half and of twice the samples' length, against batches without. Step: forward and backward of a model with
attention within documents (`model.attention: document`) against attention over the whole sequence. In turn in one
process, medians; documents have some 480 tokens. A CPU: nano. A GPU: 124M in bfloat16, where attention within documents
is flex_attention, its masks made on the device. Bars: 1 % of the step that trains on the batch, for each; on a CPU a
step within documents is at most two steps.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ado_stream as ado
from benchmarks.common import add_device, bar, seconds_in_turn, size, write_result
from benchmarks.stream_data import ROW_TOKENS, our_domains, write_domains

END = 40  # of stream_data's tokens: one in some 480
ROWS, SAMPLES, BATCHES, REPEATS = size((16, 2000, 50, 15), (2, 20, 1, 1))


def loader_ms() -> dict[str, float]:
    """Milliseconds a batch of ROWS samples: plain, and with each of what is asked."""
    with tempfile.TemporaryDirectory() as folder:
        domains = our_domains(Path(folder), write_domains(Path(folder), SAMPLES, None))
        reordered = [replace(domain, fim=0.5) for domain in domains]

        def made(domains: list[ado.Domain] = domains, num_rows: int = ROWS, **options: Any) -> Any:
            return ado.AdaptiveStreamingDataset(domains, num_rows, mixture_lag=None, end_token=END, **options)

        datasets = {
            "plain": made(),
            "positions": made(positions=True),
            "fim": made(reordered, fim_tokens=[50301, 50302, 50303]),
            "halves": made(num_rows=2 * ROWS, batch_seq_len=(ROW_TOKENS - 1) // 2),
            "joined": made(num_rows=ROWS // 2, batch_seq_len=2 * (ROW_TOKENS - 1)),
        }
        for dataset in datasets.values():
            dataset.start(0, 0)  # batches are made when they are asked for, in this thread

        def batches(dataset: Any) -> Callable[[], None]:
            def read() -> None:
                for _ in range(BATCHES):
                    dataset.next_batch()

            return read

        found = seconds_in_turn(list(map(batches, datasets.values())), REPEATS)
        for dataset in datasets.values():
            dataset.close()
    return {name: statistics.median(each) / BATCHES * 1e3 for name, each in zip(datasets, found, strict=True)}


def step_ms(device: str) -> dict[str, float]:
    """Milliseconds of forward and backward on ROWS samples: attention over sequences, within documents."""
    import torch

    from ado_model import PRESETS, Transformer

    tokens = torch.randint(4096, (ROWS, ROW_TOKENS), device=device)
    tokens[torch.rand(tokens.shape, device=device) < 1 / 480] = END
    domain_B = torch.zeros(ROWS, dtype=torch.int64, device=device)
    calls = []
    for end_token in (None, END):
        sizes = replace(PRESETS["124M" if device == "cuda" else "nano"], vocab_size=4096, end_token=end_token)
        model = Transformer(sizes).to(device)

        def step(model: Any = model) -> None:
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                loss, _, _ = model(tokens[:, :-1], tokens[:, 1:], domain_B, 1)
            loss.backward()
            model.zero_grad()
            if device == "cuda":
                torch.cuda.synchronize()

        calls.append(step)
    found = [statistics.median(each) * 1e3 for each in seconds_in_turn(calls, 5)]
    return dict(zip(("sequence", "document"), found, strict=True))


def main() -> None:
    """Measures and writes benchmarks/results/documents.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_device(parser)
    device = parser.parse_args().device
    loader, step = loader_ms(), step_ms(device)
    shares = {name: (loader[name] - loader["plain"]) / step["sequence"] for name in loader if name != "plain"}
    document = step["document"] / step["sequence"]
    bars = [bar(f"{name}, of a step", share, 0.01) for name, share in shares.items()]
    bars += [bar("a step with attention within documents, in steps", document, 2)] if device == "cpu" else []
    found = {"device": device, "loader_ms": loader, "step_ms": step, "shares": shares, "document_step": document}
    write_result("documents", found, bars)


if __name__ == "__main__":
    main()

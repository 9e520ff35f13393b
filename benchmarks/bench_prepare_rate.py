"""What does a core tokenise in a second, against tiktoken and tokenizers, and what does a terabyte of text cost?

    python -m benchmarks prepare_rate [--mb N] [--tokenizer-size N]

The text is the Python source of this environment, no file twice. A BPE is trained on a part of it; its merges and its
pattern are given to tiktoken and to tokenizers, and all three must give the same ids. Each encodes one slice of the
rest after the other, on one core, in turn: no encoder sees a text twice, so that what its memo holds is what words of
earlier text left there. Then whole commands of `prepare` with one worker, for bytes and for that BPE, over all slices
and over one: the difference of their processor seconds, without start-up, is the cost of text. Bars: our encoder, which
is Python, has at least 0.8 of the rate of tiktoken, which is Rust, and 3 times that of tokenizers.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import bar, cpu_seconds, in_own_process, python_texts, run_ado_stream, size, write_result

SLICES = 10
TRAINING = 0.3  # beside the text to encode
TERABYTE_MB = 1e6
LEAST = {"tiktoken": 0.8, "tokenizers": 3.0}  # of their rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mb", type=int, default=size(50, 1), help="of text to encode (%(default)s)")
    ids: dict[str, Any] = {"default": size(32_000, 400), "metavar": "N", "help": "ids of the BPE (%(default)s)"}
    parser.add_argument("--tokenizer-size", type=int, **ids)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_text(folder, args.mb)
        _train(folder, args.tokenizer_size)
        encoders = in_own_process(_encoders, folder)
        costs = {tokenizer: _cost(folder, tokenizer) for tokenizer in ("bytes", str(folder / "bpe"))}
    payload: dict[str, Any] = {"text_mb": args.mb, "tokenizer_ids": args.tokenizer_size, "encoders": encoders}
    payload["prepare"] = dict(zip(("bytes", "bpe"), costs.values(), strict=True))
    for tokenizer, cost in payload["prepare"].items():
        print(f"{tokenizer}: a terabyte of text takes {cost['core_hours_per_terabyte']} core-hours", file=sys.stderr)
    rates = {name: encoders[name]["mb_per_s"] for name in ("ado_stream", *LEAST)}
    ratios = {name: round(rates["ado_stream"] / rates[name], 2) for name in LEAST}
    bars = [bar(f"rate of our encoder over that of {name}", ratios[name], LEAST[name], True) for name in LEAST]
    write_result("prepare_rate", payload, bars)


def _write_text(folder: Path, megabytes: int) -> None:
    """SLICES files of JSON lines, and train.jsonl."""
    texts = python_texts(int(2 * megabytes * 1e6))
    for name in ("train", *(f"{number:02}" for number in range(SLICES))):
        written, most = 0, megabytes * 1e6 * (TRAINING if name == "train" else 1 / SLICES)
        with open(folder / f"{name}.jsonl", "w") as file:
            while written < most and (text := next(texts, None)) is not None:
                written += len(text.encode())
                file.write(json.dumps({"text": text}) + "\n")


def _read(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def _train(folder: Path, num_ids: int) -> None:
    from ado_stream.corpus.tokenizer import train_tokenizer

    (folder / "bpe").mkdir()
    train_tokenizer(_read(folder / "train.jsonl"), f"bpe:{num_ids}").save(folder / "bpe")


def _encoders(folder: Path) -> dict[str, Any]:
    """MB of new text a second of one core, of each library."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
    from tokenizers import Tokenizer as Library

    from ado_stream.corpus.tokenizer import load_tokenizer

    ours, library = load_tokenizer(folder / "bpe"), Library.from_file(str(folder / "bpe/tokenizer.json"))
    library.encode_special_tokens = True
    tiktoken = _tiktoken(folder / "bpe/tokenizer.json")
    calls: dict[str, Callable[[Sequence[str]], Any]] = {
        "ado_stream": ours.encode_batch,
        "tokenizers": lambda texts: library.encode_batch(list(texts), add_special_tokens=False),
        "tiktoken": lambda texts: tiktoken.encode_ordinary_batch(list(texts), num_threads=1),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    megabytes = tokens = 0.0
    for number in range(SLICES):
        texts = _read(folder / f"{number:02}.jsonl")
        ids = {}
        for name, call in calls.items():
            begun_s = time.process_time()
            ids[name] = call(texts)
            seconds[name].append(time.process_time() - begun_s)
        found = [each.tolist() for each in ids["ado_stream"]]
        assert found == [each.ids for each in ids["tokenizers"]] == ids["tiktoken"]
        megabytes += sum(len(text.encode()) for text in texts) / 1e6
        tokens += sum(map(len, found)) / 1e6
    first_s, last_s = seconds["ado_stream"][0], seconds["ado_stream"][-1]
    return {
        **{name: {"mb_per_s": round(megabytes / sum(each), 2)} for name, each in seconds.items()},
        "bytes_per_token": round(megabytes / tokens, 2),
        "ado_stream_first_slice_over_last": round(first_s / last_s, 2),
    }


def _tiktoken(path: Path) -> Any:
    """tiktoken's encoding of the same pattern and merges."""
    import tiktoken

    from ado_stream.corpus.bpe import END_TOKEN, _byte_alphabet

    spec = json.loads(path.read_text())
    to_byte = {character: byte for byte, character in _byte_alphabet().items()}
    vocabulary = {token: number for token, number in spec["model"]["vocab"].items() if token != END_TOKEN}
    return tiktoken.Encoding(
        "same",
        pat_str=spec["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"],
        mergeable_ranks={bytes(map(to_byte.__getitem__, token)): number for token, number in vocabulary.items()},
        special_tokens={END_TOKEN: spec["model"]["vocab"].get(END_TOKEN, 0)},
    )


def _cost(folder: Path, tokenizer: str) -> dict[str, float]:
    """Processor seconds of `prepare` on all slices less those on one, and what a terabyte would take."""

    def command(slices: int) -> None:
        shutil.rmtree(folder / "out", ignore_errors=True)
        inputs = [str(folder / f"{number:02}.jsonl") for number in range(slices)]
        out = str(folder / "out")
        run_ado_stream("prepare", *inputs, "--tokenizer", tokenizer, "--workers", "1", "--out", out, "--json")

    few_s, all_s = (min(cpu_seconds(partial(command, count)) for _ in range(size(2, 1))) for count in (1, SLICES))
    sizes = [sum(len(text.encode()) for text in _read(folder / f"{n:02}.jsonl")) / 1e6 for n in range(1, SLICES)]
    rate = sum(sizes) / (all_s - few_s)
    return {
        "mb_per_core_second": round(rate, 2),
        "start_s": round(few_s - sizes[0] / rate, 1),
        "core_hours_per_terabyte": round(TERABYTE_MB / rate / 3600),
    }


if __name__ == "__main__":
    main()

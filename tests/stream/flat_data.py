"""Small files of tokens in Megatron's and OLMo's formats, written from the formats' definitions, not by our code."""

import struct
from pathlib import Path

import numpy as np

CODES = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "float64": 6, "float32": 7, "uint16": 8}
END = 0


def make_documents(number: int, count: int = 120, vocab_size: int = 500) -> list[np.ndarray]:
    """Documents of 1 to 60 tokens that end with END and have it nowhere else."""
    rng = np.random.default_rng(number)
    return [np.append(rng.integers(1, vocab_size, rng.integers(0, 60)), END) for _ in range(count)]


def index_bytes(lengths, dtype: str = "uint16", bounds=None, version: int = 1) -> bytes:
    """An .idx of sequences of these lengths; bounds: first sequence of each document, and their number."""
    itemsize = np.dtype(dtype).itemsize
    begins, at = [], 0
    for length in lengths:
        begins.append(at)
        at += int(length) * itemsize
    bounds = list(range(len(lengths) + 1)) if bounds is None else bounds
    head = b"MMIDIDX\x00\x00" + struct.pack("<Q", version) + struct.pack("<B", CODES[dtype])
    head += struct.pack("<Q", len(lengths)) + struct.pack("<Q", len(bounds))
    body = b"".join(
        struct.pack(f"<{len(values)}{kind}", *values)
        for kind, values in (("i", [int(length) for length in lengths]), ("q", begins), ("q", bounds))
    )
    return head + body


def write_megatron(prefix: Path, documents, dtype: str = "uint16") -> np.ndarray:
    """PREFIX.bin and PREFIX.idx; returns all tokens."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    tokens = np.concatenate(documents)
    Path(f"{prefix}.bin").write_bytes(tokens.astype(f"<{np.dtype(dtype).str[1:]}").tobytes())
    Path(f"{prefix}.idx").write_bytes(index_bytes([len(document) for document in documents], dtype))
    return tokens


def write_raw(path: Path, tokens: np.ndarray, dtype: str = "uint16") -> Path:
    """OLMo's way: the tokens and nothing else, in a file that is called .npy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tokens.astype(dtype).tobytes())
    return path


def samples_of(tokens: np.ndarray, seq_len: int) -> np.ndarray:
    """(n, seq_len + 1): what a plain loop cuts from one file."""
    cut = [tokens[at : at + seq_len + 1] for at in range(0, len(tokens) - seq_len, seq_len)]
    return np.array(cut, np.int64).reshape(-1, seq_len + 1)

"""A trained model as a Hugging Face folder: config.json, model.safetensors, generation_config.json, tokenizer files.

The transformer has Qwen3's layers and parameter names, so no tensor is reshaped. Invariant: the folder appears complete
or not at all (written under a temporary name, then renamed).
"""

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ado_stream.corpus.tokenizer import BYTES, HuggingFaceTokenizer, Tokenizer
from ado_stream.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from torch import Tensor

    from ado_model import Transformer

ARCHITECTURE = "Qwen3ForCausalLM"


def export_hugging_face(
    model: "Transformer", out_dir: str | os.PathLike[str], tokenizer: Tokenizer | None = None
) -> Path:
    """Writes `model` so that transformers' AutoModelForCausalLM loads it; returns the folder.

    model: with unsharded parameters, saved in float32. tokenizer: the corpus's, whose files are added. Raises
    ConfigError when the folder is not empty, StorageError when it cannot be written.
    """
    from safetensors.torch import save_file

    out_dir = Path(out_dir)
    if out_dir.exists() and any(out_dir.iterdir()):
        raise ConfigError(f"{out_dir} is not empty; name a new folder.")
    partial = out_dir.with_name(out_dir.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(renamed_parameters(model), str(partial / "model.safetensors"), metadata={"format": "pt"})
        end_id = tokenizer.end_id if tokenizer is not None else None
        _write_json(partial / "config.json", hugging_face_config(model, end_id))
        _write_json(partial / "generation_config.json", {"_from_model_config": True, "eos_token_id": end_id})
        if tokenizer is not None:
            (byte_tokenizer() if tokenizer.name == BYTES else tokenizer).save(partial)
        if out_dir.exists():
            out_dir.rmdir()
        partial.rename(out_dir)
    except OSError as error:
        raise StorageError(f"{out_dir}: not exported: {error.strerror}.") from error
    return out_dir


def byte_tokenizer() -> HuggingFaceTokenizer:
    """The byte tokenizer in Hugging Face's format: a BPE without merges, with byte fallback for every character."""
    from tokenizers import AddedToken, decoders, models
    from tokenizers import Tokenizer as HuggingFace

    end_token = "<|endoftext|>"
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    tokenizer = HuggingFace(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(end_token, special=True)])
    return HuggingFaceTokenizer(tokenizer, end_token, BYTES)


def renamed_parameters(model: "Transformer") -> "dict[str, Tensor]":
    """Parameters by Qwen3's names; the output layer is tied to the embedding and not written."""
    return {f"model.{name}": value.detach().cpu().contiguous() for name, value in model.named_parameters()}


def hugging_face_config(model: "Transformer", end_id: int | None) -> dict[str, Any]:
    """The content of config.json."""
    sizes = model.config
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "qwen3",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": end_id,
        "head_dim": sizes.head_width,
        "hidden_act": "silu",
        "hidden_size": sizes.width,
        "initializer_range": 0.02,
        "intermediate_size": sizes.mlp_width,
        "max_position_embeddings": sizes.context_length,
        "num_attention_heads": sizes.num_heads,
        "num_hidden_layers": sizes.num_layers,
        "num_key_value_heads": sizes.num_heads,
        "rms_norm_eps": sizes.norm_eps,
        "rope_theta": sizes.rope_theta,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": sizes.vocab_size,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")

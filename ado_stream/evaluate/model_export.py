"""A trained model as a Hugging Face folder: config.json, model.safetensors, generation_config.json, tokenizer files.

The transformer has Qwen3's layers and parameter names, so no tensor is reshaped. Invariant: the folder appears complete
or not at all (written under a temporary name, then renamed).
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ado_stream.corpus.tokenizer import BYTES, HuggingFaceTokenizer, Tokenizer
from ado_stream.durable import sync
from ado_stream.errors import ConfigError, StorageError
from ado_stream.option_checks import instance, path_text
from ado_stream.train.checkpoint_commit import create_empty
from ado_stream.value_types import JsonObject

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ado_model import ModelConfig, Transformer

ARCHITECTURE = "Qwen3ForCausalLM"
DTYPES = ("float32", "bfloat16")
# Parts of parameter names that torch.compile, DDP, checkpoint_wrapper and FSDP1 put in.
_WRAPPERS = ("_orig_mod", "module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


def export_hugging_face(
    model: "nn.Module", out_dir: str | os.PathLike[str], tokenizer: Tokenizer | None = None, dtype: str = "float32"
) -> Path:
    """Writes `model` so that transformers' AutoModelForCausalLM loads it; returns the folder.

    model: a Transformer, or one that is compiled or wrapped, with unsharded parameters. tokenizer: the corpus's, whose
    files are added. dtype: of the written parameters, float32 or bfloat16; the model's may differ. Raises ConfigError
    when the folder is not empty or the parameters are not the architecture's, StorageError when it cannot be written.
    """
    from safetensors.torch import save_file

    out_dir = Path(path_text("out_dir", out_dir))
    if out_dir.exists() and not out_dir.is_dir():
        raise ConfigError(f"{out_dir} is a file; name a new folder.")
    if out_dir.exists() and any(out_dir.iterdir()):
        raise ConfigError(f"{out_dir} is not empty; name a new folder.")
    transformer = find_transformer(model)
    tensors = renamed_parameters(transformer, dtype)
    if tokenizer is not None:
        num_ids = instance("not exported: tokenizer", tokenizer, Tokenizer).vocab_size
        if num_ids > transformer.config.vocab_size:
            raise ConfigError(
                f"not exported: the tokenizer has {num_ids} ids, the model {transformer.config.vocab_size}; give the "
                "one that the model was trained with."
            )
    end_id = tokenizer.end_id if tokenizer is not None else None
    partial = out_dir.with_name(out_dir.name + ".partial")
    try:
        create_empty(partial)
        save_file(tensors, str(partial / "model.safetensors"), metadata={"format": "pt"})
        _write_json(partial / "config.json", hugging_face_config(transformer.config, end_id, dtype))
        _write_json(partial / "generation_config.json", {"_from_model_config": True, "eos_token_id": end_id})
        if tokenizer is not None:
            (byte_tokenizer() if tokenizer.name == BYTES else tokenizer).save(partial)
        for path in (*partial.iterdir(), partial):
            sync(path)  # before the rename: a power cut must not leave the name without the bytes
        if out_dir.exists():
            out_dir.rmdir()
        partial.rename(out_dir)
        sync(out_dir.parent)
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


def find_transformer(model: "nn.Module") -> "Transformer":
    """The transformer that `model` is or wraps."""
    from torch import nn

    from ado_model import Transformer

    instance("not exported: model", model, nn.Module)
    found = [module for module in model.modules() if isinstance(module, Transformer)]
    if len(found) != 1:
        raise ConfigError(f"not exported: {type(model).__name__} has {len(found)} ado_model.Transformer; give one.")
    return found[0]


def renamed_parameters(transformer: "Transformer", dtype: str) -> "dict[str, Tensor]":
    """Parameters by Qwen3's names; the output layer is tied to the embedding and not written.

    Raises ConfigError unless names and shapes are those of the architecture: transformers gives random numbers to
    parameters that it does not find; and for values that are not numbers by themselves, or no finite ones in `dtype`.
    """
    import torch
    from torch import nn
    from torch.distributed.tensor import DTensor

    from ado_kernels.ops.operands import FLOATING
    from ado_model import Transformer

    if dtype not in DTYPES:
        raise ConfigError(f"not exported: dtype {dtype!r}; expected one of {', '.join(DTYPES)}.")
    parameters = {_without_wrappers(name): value for name, value in transformer.named_parameters()}
    if any(isinstance(value, DTensor) for value in parameters.values()):
        raise ConfigError(
            "not exported: parameters are sharded. Use `ado-stream export` on the run's checkpoint, or load what\n"
            "  torch.distributed.checkpoint.state_dict.get_model_state_dict gathers into a Transformer and export that."
        )
    with torch.device("meta"):
        plain = Transformer(transformer.config)
    expected = {name: value.shape for name, value in plain.named_parameters()}
    missing = [name for name in expected if name not in parameters or parameters[name].shape != expected[name]]
    unknown = [name for name in parameters if name not in expected]
    buffers = {_without_wrappers(name) for name, _ in transformer.named_buffers()}
    unknown += sorted(buffers - {name for name, _ in plain.named_buffers()})
    if missing or unknown:
        raise ConfigError(
            f"not exported: parameters and buffers are not those of the architecture: {len(missing)} missing or of "
            f"another shape ({', '.join(missing[:2])}), {len(unknown)} unknown ({', '.join(unknown[:2])})."
        )
    for name, module in transformer.named_modules():
        if module._modules.keys() & set(_WRAPPERS) and not type(module).__module__.startswith("torch."):
            raise ConfigError(f"not exported: {name} is a {type(module).__name__}, which is not written; unwrap it.")
    tensors = {}
    for name, value in parameters.items():
        if type(value) is not nn.Parameter or value.is_meta or value.dtype not in FLOATING:
            kind = f"{type(value).__name__} of {value.dtype} on {value.device}"
            raise ConfigError(
                f"not exported: {name} is a {kind}; expected floating-point numbers with memory. Load what was trained."
            )
        tensors[f"model.{name}"] = written = value.detach().cpu().to(getattr(torch, dtype)).contiguous()
        if not written.isfinite().all():
            raise ConfigError(
                f"not exported: {name} has values that are not finite in {dtype}; take a checkpoint before."
            )
    return tensors


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def hugging_face_config(sizes: "ModelConfig", end_id: int | None, dtype: str) -> JsonObject:
    """The content of config.json."""
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
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": sizes.vocab_size,
    }


def _write_json(path: Path, value: JsonObject) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")

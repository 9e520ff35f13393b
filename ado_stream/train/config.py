"""The training config: its keys, its defaults, and how a YAML file and dotted overrides become one checked object.

Invariant: what `load_config` returns has known keys of the right type only; a misspelt key is named with its nearest
known one. Values that depend on the corpus or the model (None here) are settled in assemble.py.
"""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_origin

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ado_stream.errors import ConfigError, NotFound
from ado_stream.policy.domain_weights import with_text_keys
from ado_stream.suggest import did_you_mean


@dataclass
class ModelSection:
    """Which transformer. context_length None: the corpus's seq_len; vocab_size None: the corpus's, padded to 64."""

    preset: str = "124M"
    context_length: int | None = None
    vocab_size: int | None = None


@dataclass
class DataSection:
    """How batches are drawn and read; the names are AdaptiveStreamingDataset's and AdaptiveLoader's.

    cache_dir: where shards of a remote corpus are kept; cache_limit: its size, bytes or a text such as "50gb".
    """

    global_batch_size: int = 32
    canonical_nodes: int = 1
    mixture_lag: int = 8
    sampling: str = "systematic"
    prefetch: int = 4
    io_threads: int = 4
    cache_dir: str | None = None
    cache_limit: str | None = None
    replication: int = 1


@dataclass
class PolicySection:
    """Which policy, by `make_policy`.

    prior: weights by domain, empty for the token shares; guards: [{name: floor, ...}, ...], the innermost first.
    """

    name: str = "ado"
    options: dict[str, Any] = field(default_factory=dict)
    prior: dict[str, float] = field(default_factory=dict)
    guards: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class TrainSection:
    """The optimisation and the machine.

    learning_rate None: 0.46 / width, which is 6.0e-4 at width 768 and 2.2e-4 at 2048, where GPT-3 took 6.0e-4 and
    2.0e-4 (arXiv 2005.14165, table 2.1). warmup_steps None: a tenth of the run, at most 1000. grad_clip: largest norm
    of the gradient; None: any. micro_batch_size: rows of one forward and backward on one rank; None: all of the rank's.
    dtype, device "auto": bfloat16 on a GPU, float32 on a CPU. collective_timeout_s: how long ranks wait for each other,
    and for a save in the background, before all of them fail.
    """

    steps: int = 1000
    learning_rate: float | None = None
    min_learning_rate_frac: float = 0.1
    warmup_steps: int | None = None
    weight_decay: float = 0.1
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    grad_clip: float | None = 1.0
    micro_batch_size: int | None = None
    dtype: str = "auto"
    compile: bool = False
    activation_checkpointing: bool = False
    strategy: str = "ddp"
    device: str = "auto"
    max_nonfinite: int = 10
    collective_timeout_s: float = 600.0


@dataclass
class CheckpointSection:
    """every_steps 0: only at the end and when stopped; keep: how many complete ones stay on disk."""

    every_steps: int = 1000
    keep: int = 2
    asynchronous: bool = False


@dataclass
class EvaluateSection:
    """every_steps 0: only at the end; max_samples_per_domain None: every validation sample."""

    every_steps: int = 1000
    max_samples_per_domain: int | None = 256


@dataclass
class LogSection:
    """every_steps: distance of console lines and of what goes to TensorBoard and Weights & Biases."""

    every_steps: int = 10
    tensorboard: bool = False
    wandb: bool = False


@dataclass
class TrainConfig:
    """Everything that `run_training` needs; `corpus` and `run_dir` must be given."""

    corpus: str = ""
    run_dir: str = ""
    seed: int = 17
    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    policy: PolicySection = field(default_factory=PolicySection)
    train: TrainSection = field(default_factory=TrainSection)
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    evaluate: EvaluateSection = field(default_factory=EvaluateSection)
    log: LogSection = field(default_factory=LogSection)


CHOICES = {
    "data.sampling": ("systematic", "multinomial"),
    "train.dtype": ("auto", "float32", "bfloat16"),
    "train.strategy": ("ddp", "fsdp"),
}
AT_LEAST = {
    "data.global_batch_size": 1,
    "data.canonical_nodes": 1,
    "train.steps": 1,
    "train.warmup_steps": 0,
    "train.weight_decay": 0,
    "train.micro_batch_size": 1,
    "train.max_nonfinite": 0,
    "checkpoint.every_steps": 0,
    "checkpoint.keep": 1,
    "evaluate.every_steps": 0,
    "evaluate.max_samples_per_domain": 1,
    "log.every_steps": 1,
}
ABOVE_0 = {  # and what else may be given
    "train.learning_rate": ", or null for 0.46 / width",
    "train.grad_clip": ", or null for no limit",
    "train.collective_timeout_s": "",
}
_CONTAINERS = {list: "a list: [VALUE, ...]", dict: "a mapping: {KEY: VALUE, ...}"}


def load_config(source: str | os.PathLike[str] | Mapping[str, Any], overrides: Sequence[str] = ()) -> TrainConfig:
    """The config in a YAML file, or of a nested mapping, with dotted overrides ("train.steps=300") on top.

    Raises NotFound for a missing file; ConfigError for an unknown key, a wrong type, a value out of range, or no
    `corpus` or `run_dir`.
    """
    try:
        dotted = OmegaConf.to_container(OmegaConf.from_dotlist(list(map(_assignment, overrides))))
        given = OmegaConf.merge(*(OmegaConf.create(_with_names(values)) for values in (_read(source), dotted)))
        _refuse_unknown(OmegaConf.to_container(given), TrainConfig, "")
        merged = OmegaConf.merge(OmegaConf.structured(TrainConfig), given)
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(f"'{error.full_key}': {str(error.msg or error).splitlines()[0]}") from None
    assert isinstance(config, TrainConfig)
    config.corpus, config.run_dir = map(os.path.expanduser, (config.corpus, config.run_dir))
    if config.data.cache_dir is not None:
        config.data.cache_dir = os.path.expanduser(config.data.cache_dir)
    _check(config)
    return config


def save_config(config: TrainConfig, path: Path) -> None:
    """Writes `config` as YAML that `load_config` reads back to an equal object."""
    path.write_text(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False))


def _read(source: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(source, Mapping):
        return dict(source)
    try:
        loaded = OmegaConf.load(Path(source))
    except FileNotFoundError:
        raise NotFound(f"{source}: no such config file.") from None
    except OSError as error:
        raise ConfigError(f"{source}: not a config file: {error.strerror or error}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source}: not YAML: {' '.join(str(error).split())}") from None
    values = OmegaConf.to_container(loaded)
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: expected sections such as 'train:', got a list.")
    return {str(key): value for key, value in values.items()}


def _with_names(values: Any) -> Any:
    """The values, with text for the domains of `policy.prior` that YAML takes for numbers."""
    policy = values.get("policy")
    if not (isinstance(policy, Mapping) and isinstance(policy.get("prior"), Mapping)):
        return values
    return {**values, "policy": {**policy, "prior": with_text_keys(policy["prior"], "'policy.prior'")}}


def _assignment(text: str) -> str:
    key, equals, _ = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override {text!r} is not KEY=VALUE; for example train.steps=300.")
    return text


def _known_keys(section: type, prefix: str) -> list[str]:
    found = []
    for each in dataclasses.fields(section):
        found.append(prefix + each.name)
        if dataclasses.is_dataclass(each.type):
            found += _known_keys(each.type, f"{prefix}{each.name}.")  # type: ignore[arg-type]
    return found


def _refuse_unknown(values: Any, section: type, prefix: str) -> None:
    """Raises ConfigError for the first key of `values` that `section` does not have, or has as a list or a mapping."""
    types = {each.name: each.type for each in dataclasses.fields(section)}
    if not isinstance(values, dict):
        raise ConfigError(f"'{prefix.rstrip('.')}' is a section with the keys {', '.join(types)}; got {values!r}.")
    for key, value in values.items():
        if key not in types:
            name = f"{prefix}{key}"
            # sections share prefixes, so that a lower cutoff would suggest a key of another meaning
            hint = did_you_mean(name, _known_keys(TrainConfig, ""), cutoff=0.75) or f"; known here: {', '.join(types)}."
            raise ConfigError(f"unknown '{name}'{hint}")
        if dataclasses.is_dataclass(types[key]):
            _refuse_unknown(value, types[key], f"{prefix}{key}.")  # type: ignore[arg-type]
        container = get_origin(types[key])
        if container in _CONTAINERS and value is not None and not isinstance(value, container):
            raise ConfigError(f"'{prefix}{key}' is {value!r}; give {_CONTAINERS[container]}.")


def _check(config: TrainConfig) -> None:
    for name in ("corpus", "run_dir"):
        if not getattr(config, name):
            raise ConfigError(f"'{name}' is not set; give it in the file or as {name}=PATH.")
    for name, choices in CHOICES.items():
        if _value(config, name) not in choices:
            raise ConfigError(f"'{name}' is {_value(config, name)!r}; choose one of {', '.join(choices)}.")
    for name, least in AT_LEAST.items():
        value = _value(config, name)
        if value is not None and not least <= value < math.inf:
            raise ConfigError(f"'{name}' is {value}; it must be at least {least}.")
    for name, otherwise in ABOVE_0.items():
        value = _value(config, name)
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"'{name}' is {value}; give a number above 0{otherwise}.")
    train = config.train
    if len(train.betas) != 2 or not all(0 <= beta < 1 for beta in train.betas):
        raise ConfigError(f"'train.betas' is {train.betas}; give two numbers from 0 to below 1.")
    if not 0 <= train.min_learning_rate_frac <= 1:
        raise ConfigError(f"'train.min_learning_rate_frac' is {train.min_learning_rate_frac}; give one from 0 to 1.")
    if train.warmup_steps is not None and train.warmup_steps >= train.steps:
        raise ConfigError(
            f"'train.warmup_steps' is {train.warmup_steps}; it must be below 'train.steps', {train.steps}."
        )


def _value(config: TrainConfig, name: str) -> Any:
    section, key = name.split(".")
    return getattr(getattr(config, section), key)

"""The training config: its keys, defaults and allowed values, and how YAML and dotted overrides become one object.

Invariant: what `load_config` returns has known keys only, of the right types and within their bounds; a misspelt key is
reported with the nearest known one. Values that depend on the corpus or the model (None here) are set in components.py.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ado_stream.durable import write_durably
from ado_stream.errors import ConfigError
from ado_stream.json_files import check_type
from ado_stream.option_checks import MOST_STEPS
from ado_stream.policy.domain_weights import with_text_keys
from ado_stream.storage.retry import RetryPolicy
from ado_stream.suggest import did_you_mean
from ado_stream.value_types import JsonMapping, JsonObject
from ado_stream.yaml_files import parse_assignments, read_yaml

CONFIG_FILE = "config.yaml"  # in the run directory
T = TypeVar("T")


@dataclass(frozen=True)
class Bounds:
    """Allowed values of a field, in its metadata: as text for messages, and as a test. None is always allowed."""

    text: str
    allow: Callable[[Any], bool]


def at_least(least: float, default: T, most: float = math.inf) -> T:
    """A field of finite numbers from `least` to `most`."""
    text = f"{least} or more" if most == math.inf else f"{least} or more, {most} at most"
    return _bounded(default, text, lambda value: least <= value <= most and value < math.inf)


def above_zero(default: T, null: str = "") -> T:
    """A field of finite positive numbers. null: what None means, for messages."""
    return _bounded(default, "a number above 0", lambda value: 0 < value < math.inf, null)


def choice(*choices: str) -> str:
    """A field whose default is the first choice."""
    return _bounded(choices[0], f"one of {', '.join(choices)}", lambda value: value in choices)


def _bounded(default: T, text: str, allow: Callable[[Any], bool], null: str = "") -> T:
    """A dataclass field with Bounds; to the type checker, as that of dataclasses.field, its default."""
    bounds = Bounds(f"{text}, or null for {null}" if null else text, allow)
    make_default = {"default_factory": lambda: list(default)} if isinstance(default, list) else {"default": default}
    made: T = field(**make_default, metadata={"bounds": bounds})
    return made


@dataclass
class ModelSection:
    """Which transformer. context_length None: the corpus's seq_len; vocab_size None: the corpus's, padded to 64.

    attention "document": it stays within each of the documents that a sample is packed with.
    """

    preset: str = "124M"
    context_length: int | None = at_least(1, None)
    vocab_size: int | None = at_least(1, None)
    attention: str = choice("sequence", "document")


@dataclass
class RetrySection:
    """Bounds of one object's download, in attempts and seconds; see RetryPolicy in ado_stream/storage/retry.py."""

    attempts: int = at_least(1, RetryPolicy.attempts)
    total_deadline_s: float = above_zero(RetryPolicy.total_deadline_s)
    read_timeout_s: float = above_zero(RetryPolicy.read_timeout_s)
    base_delay_s: float = at_least(0, RetryPolicy.base_delay_s)
    max_delay_s: float = at_least(0, RetryPolicy.max_delay_s)
    min_bytes_per_s: float = at_least(0, RetryPolicy.min_bytes_per_s)
    max_downloads: int = at_least(1, RetryPolicy.max_downloads)


@dataclass
class DataSection:
    """How batches are drawn and read; the names are AdaptiveStreamingDataset's and AdaptiveLoader's.

    seq_len: of a batch's rows, a multiple or a divisor of the corpus's; None: the corpus's.
    cache_dir: where shards of a remote corpus are kept; cache_limit: its size, bytes or a text such as "50gb".
    predownload: samples to keep on the local disk ahead; None: 64 steps. shuffle: "blocks", or one of Streaming's
    py1e, py1br, py1s, py2s, naive. token_column, token_dtype: where the shards of a corpus that `prepare` did not write
    keep their tokens. timeout_s: longest wait for a mixture, a shard or a batch. fim: {domain: rate, or {rate,
    spm_rate}} of fill-in-the-middle (docs/fim.md); fim_tokens: [prefix, suffix, middle], where the tokenizer has none.
    """

    global_batch_size: int = at_least(1, 32)
    seq_len: int | None = at_least(1, None)
    canonical_nodes: int = at_least(1, 1)
    mixture_lag: int = at_least(0, 8)
    sampling: str = choice("systematic", "multinomial")
    shuffle: str = "blocks"
    prefetch: int = at_least(0, 4)
    io_threads: int = at_least(0, 4)
    predownload: int | None = at_least(1, None)
    cache_dir: str | None = None
    cache_limit: str | None = None
    replication: int = at_least(1, 1)
    token_column: str = "tokens"
    token_dtype: str | None = None
    timeout_s: float = above_zero(900.0)
    fim: JsonObject = field(default_factory=dict)
    fim_tokens: list[int] | None = None
    retry: RetrySection = field(default_factory=RetrySection)


@dataclass
class PolicySection:
    """Which policy, as `make_policy` takes it.

    prior: weights by domain; empty: token shares. guards: [{name: floor, ...}, ...], the innermost first.
    """

    name: str = "target"
    options: JsonObject = field(default_factory=dict)
    prior: dict[str, float] = field(default_factory=dict)
    guards: list[JsonObject] = field(default_factory=list)


@dataclass
class TrainSection:
    """The optimization and the hardware.

    learning_rate None: 0.46 / width, which is 6.0e-4 at width 768 and 2.2e-4 at 2048, where GPT-3 took 6.0e-4 and
    2.0e-4 (arXiv 2005.14165, table 2.1). warmup_steps None: a tenth of the run, at most 1000. grad_clip: largest norm
    of the gradient. micro_batch_size: rows of one forward and backward on one rank; None: all of the rank's.
    dtype, device "auto": bfloat16 on a GPU, float32 on a CPU. max_nonfinite: skipped steps before the run fails.
    collective_timeout_s: how long ranks wait for each other, and for a save in the background, before all of them fail.
    """

    steps: int = at_least(1, 1000, MOST_STEPS)
    learning_rate: float | None = above_zero(None, null="0.46 / width")
    min_learning_rate_frac: float = _bounded(0.1, "a number from 0 to 1", lambda value: 0 <= value <= 1)
    warmup_steps: int | None = at_least(0, None)
    weight_decay: float = at_least(0, 0.1)
    betas: list[float] = _bounded(
        [0.9, 0.95],
        "two numbers from 0 to below 1",
        lambda value: len(value) == 2 and all(0 <= beta < 1 for beta in value),
    )
    grad_clip: float | None = above_zero(1.0, null="no limit")
    micro_batch_size: int | None = at_least(1, None)
    dtype: str = choice("auto", "float32", "bfloat16")
    compile: bool = False
    activation_checkpointing: bool = False
    strategy: str = choice("ddp", "fsdp")
    device: str = "auto"
    max_nonfinite: int = at_least(0, 10)
    collective_timeout_s: float = above_zero(600.0)


@dataclass
class StageSection:
    """One of the stages that a run goes through; what it leaves out is as in the sections `data` and `train`.

    steps: of this stage. learning_rate_end: the rate of its last step, to which half a cosine leads from the peak or
    the last end that was given; None: it goes on to the next end, or to the run's. mixture: {domain: weight}, or the
    name of a policy that needs neither losses nor options; None: of the run's policy, which learns in every stage.
    """

    steps: int = at_least(1, MISSING, MOST_STEPS)
    global_batch_size: int | None = at_least(1, None)
    seq_len: int | None = at_least(1, None)
    micro_batch_size: int | None = at_least(1, None)
    learning_rate_end: float | None = at_least(0, None)
    mixture: Any = None


@dataclass
class CheckpointSection:
    """every_steps 0: only at the end and when stopped; keep: how many committed ones stay on disk."""

    every_steps: int = at_least(0, 1000)
    keep: int = at_least(1, 2)
    asynchronous: bool = False


@dataclass
class EvaluateSection:
    """every_steps 0: only at the end; max_samples_per_domain None: every validation sample."""

    every_steps: int = at_least(0, 1000)
    max_samples_per_domain: int | None = at_least(1, 256)


@dataclass
class LogSection:
    """every_steps: between console lines, and between points in TensorBoard and Weights & Biases.

    sample_losses: this many of each step's highest sample losses are recorded, for `ado-stream trace`; 0: none.
    """

    every_steps: int = at_least(1, 10)
    sample_losses: int = at_least(0, 0)
    tensorboard: bool = False
    wandb: bool = False


@dataclass
class TrainConfig:
    """All that `run_training` needs; `corpus` and `run_dir` must be given.

    stages: one after another; `train.steps` is then their sum. None: one of `train.steps`.
    """

    corpus: str = ""
    run_dir: str = ""
    seed: int = 17
    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    policy: PolicySection = field(default_factory=PolicySection)
    train: TrainSection = field(default_factory=TrainSection)
    stages: list[StageSection] = field(default_factory=list)
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    evaluate: EvaluateSection = field(default_factory=EvaluateSection)
    log: LogSection = field(default_factory=LogSection)


_CONTAINERS = {list: "a list: [VALUE, ...]", dict: "a mapping: {KEY: VALUE, ...}"}


def load_config(source: str | os.PathLike[str] | JsonMapping, overrides: Sequence[str] = ()) -> TrainConfig:
    """The config in a YAML file, or of a nested mapping, with dotted overrides ("train.steps=300") on top.

    Raises NotFound for a missing file; ConfigError for an unknown key, a wrong type, a value out of range, or no
    `corpus` or `run_dir`.
    """
    try:
        read = dict(source) if isinstance(source, Mapping) else read_yaml(source, "config", resolve=False)
        dotted = parse_assignments(overrides, "override", "train.steps=300")
        given = OmegaConf.merge(*(OmegaConf.create(_with_names(values)) for values in (read, dotted)))
        plain = OmegaConf.to_container(given)
        assert isinstance(plain, dict)
        _refuse_text(plain.get("corpus"))
        _refuse_unknown(plain, TrainConfig, "")
        merged = OmegaConf.merge(OmegaConf.structured(TrainConfig), given)
        config = OmegaConf.to_object(merged)
        given_steps = OmegaConf.select(given, "train.steps")
    except OmegaConfBaseException as error:
        raise ConfigError(f"'{error.full_key}': {str(error.msg or error).splitlines()[0]}") from None
    except (TypeError, ValueError, OverflowError) as error:  # that OmegaConf lets through, the key in its second line
        raise ConfigError(f"the config: {', '.join(line.strip() for line in str(error).splitlines()[:2])}.") from None
    assert isinstance(config, TrainConfig)
    config.corpus, config.run_dir = map(os.path.expanduser, (config.corpus, config.run_dir))
    if config.data.cache_dir is not None:
        config.data.cache_dir = os.path.expanduser(config.data.cache_dir)
    if config.stages:
        config.train.steps = sum(stage.steps for stage in config.stages)
        config.stages = [_filled_in(stage, config) for stage in config.stages]
    _check(config)
    if config.stages and given_steps not in (None, config.train.steps):
        raise ConfigError(f"'train.steps' is {given_steps}, the stages have {config.train.steps}; leave it out.")
    return config


def save_config(config: TrainConfig, path: Path) -> None:
    """Writes `config` as YAML that `load_config` reads back to an equal object."""
    write_durably(path, yaml.safe_dump(dataclasses.asdict(config), sort_keys=False))


def _filled_in(stage: StageSection, config: TrainConfig) -> StageSection:
    """`stage` with the values of the sections where it has none."""
    section = {"global_batch_size": config.data, "seq_len": config.data, "micro_batch_size": config.train}
    missing = [key for key in section if getattr(stage, key) is None]
    return dataclasses.replace(stage, **{key: getattr(section[key], key) for key in missing})


def _refuse_text(corpus: object) -> None:
    """Raises ConfigError for text in place of a corpus: order, prior and state need the sizes of all domains."""
    if isinstance(corpus, dict) and "text" in corpus or isinstance(corpus, str) and corpus.startswith("text:"):
        raise ConfigError(
            "'corpus' is text, which is not tokenised while a run trains: its order, prior and state need the sizes of "
            "all domains.\n  Run `ado-stream prepare` first, for a first look on some of the files (docs/prepare.md)."
        )


def _with_names(values: JsonObject) -> JsonObject:
    """The values with domains as text where they are keys; YAML reads a name such as 2023 as a number."""
    for section, key in (("policy", "prior"), ("data", "fim")):
        given = values.get(section)
        if isinstance(given, Mapping) and isinstance(given.get(key), Mapping):
            values = {**values, section: {**given, key: with_text_keys(given[key], f"'{section}.{key}'")}}
    return values


def _fields(section: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[object]]]:
    """(dotted key, field) of every field, sections and those inside of them too."""
    for each in dataclasses.fields(section):
        yield prefix + each.name, each
        if isinstance(each.type, type) and dataclasses.is_dataclass(each.type):
            yield from _fields(each.type, f"{prefix}{each.name}.")


def _refuse_unknown(values: object, section: type, prefix: str) -> None:
    """Raises ConfigError for a key that `section` does not have, or a value that is not the container it takes."""
    types = {each.name: _without_none(each.type) for each in dataclasses.fields(section)}
    if not isinstance(values, dict):
        raise ConfigError(f"'{prefix.rstrip('.')}' is a section with the keys {', '.join(types)}; got {values!r}.")
    for key, value in values.items():
        if key not in types:
            name = f"{prefix}{key}"
            # sections share prefixes, so that a lower cutoff would suggest a key of another meaning
            hint = did_you_mean(name, dict(_fields(TrainConfig)), cutoff=0.75) or f"; known here: {', '.join(types)}."
            raise ConfigError(f"unknown '{name}'{hint}")
        _refuse_value(value, types[key], f"{prefix}{key}")


def _refuse_value(value: object, kind: object, name: str) -> None:
    """Raises ConfigError for what OmegaConf would take, or refuse without the whole name."""
    container, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        _refuse_unknown(value, kind, f"{name}.")
    elif container in _CONTAINERS and value is not None and not isinstance(value, container):
        raise ConfigError(f"'{name}' is {value!r}; give {_CONTAINERS[container]}.")
    elif container is list and isinstance(value, list):
        for number, item in enumerate(value):
            _refuse_value(item, arguments[0], f"{name}[{number}]")
    elif container is dict and isinstance(value, dict):
        for key, item in value.items():
            _refuse_value(item, arguments[1], f"{name}.{key}")
    elif isinstance(value, int) and abs(value) >= 1 << 63:
        raise ConfigError(f"'{name}' is a number of {len(str(abs(value)))} digits; allowed: less than 2^63.")


def _without_none(kind: object) -> object:
    """A field's type, less the None that it may be."""
    return get_args(kind)[0] if NoneType in get_args(kind) else kind


def _check(config: TrainConfig) -> None:
    for name in ("corpus", "run_dir"):
        if not getattr(config, name):
            raise ConfigError(f"'{name}' is not set; give it in the file or as {name}=PATH.")
    _check_bounds(config, "")
    for number, stage in enumerate(config.stages):
        _check_bounds(stage, f"stages[{number}].")
    train = config.train
    if train.warmup_steps is not None and train.warmup_steps >= train.steps:
        raise ConfigError(
            f"'train.warmup_steps' is {train.warmup_steps}; it must be below 'train.steps', {train.steps}."
        )


def _check_bounds(section: TrainConfig | StageSection, prefix: str) -> None:
    for key, each in _fields(type(section)):
        value, bounds = attrgetter(key)(section), each.metadata.get("bounds")
        if isinstance(value, (list, dict)):  # OmegaConf checks what is in them only in part
            check_type(value, each.type, f"'{prefix}{key}'", ConfigError)
        if bounds and value is not None and not bounds.allow(value):
            raise ConfigError(f"'{prefix}{key}' is {value!r}; allowed: {bounds.text}.")

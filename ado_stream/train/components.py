"""Builds the components of a run from its config: corpus, loader, policy, model config, learning-rate schedule.

Values that the config leaves as None are set here. Invariant: settings that cannot work together raise ConfigError
here, before the first step and on all ranks.
"""

import dataclasses
import math
import re
from dataclasses import dataclass

from ado_model import PRESETS, ModelConfig
from ado_stream.corpus import Corpus, open_corpus
from ado_stream.corpus.manifest import num_samples
from ado_stream.errors import ConfigError, NotFound
from ado_stream.loader import AdaptiveLoader, make_policy_for
from ado_stream.option_checks import known_name, number
from ado_stream.policy.base_policy import Policy
from ado_stream.storage.retry import RetryPolicy
from ado_stream.stream.dataset import AdaptiveStreamingDataset
from ado_stream.train.distributed import DistributedContext
from ado_stream.train.metric_sinks import require_packages
from ado_stream.train.run_config import TrainConfig
from ado_stream.train.stages import planned_stages, run_stages
from ado_stream.train.train_step import LearningRateSchedule
from ado_stream.train.validation import Validator

_VOCAB_MULTIPLE = 64  # tensor cores need whole tiles
_RATE_TIMES_WIDTH = 0.46  # see TrainSection
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


@dataclass(frozen=True)
class RunComponents:
    """The components of a run on one rank, without the model. micro_rows: samples of one forward and backward pass."""

    corpus: Corpus
    model: ModelConfig
    loader: AdaptiveLoader
    schedule: LearningRateSchedule
    micro_rows: int


def build_components(config: TrainConfig, context: DistributedContext) -> RunComponents:
    """Builds all components, starts nothing. Raises ConfigError (impossible settings), DataError, StorageError."""
    require_packages(config.log)
    corpus = open_split(config, "train")
    model = model_config(config, corpus)
    dataset = make_dataset(config, corpus, context)
    if model.end_token is not None and dataset.settings.samples_per_row > 1:
        raise ConfigError(
            f"rows of {dataset.settings.samples_per_row} samples: 'model.attention' is document, and nothing in their "
            "tokens says where two meet.\n  Prepare the corpus with a longer --seq-len; shorter rows are parts of it."
        )
    if dataset.fim is not None and max(dataset.fim.marks) >= model.vocab_size:
        raise ConfigError(
            f"'data.fim_tokens' is {list(dataset.fim.marks)}, but the model has {model.vocab_size} tokens; raise "
            "'model.vocab_size'."
        )
    loader = AdaptiveLoader(
        dataset,
        make_run_policy(config, corpus, dataset),
        prefetch=config.data.prefetch,
        io_threads=config.data.io_threads,
        pin_memory=context.device.type == "cuda",
        device=context.device,
        timeout_s=context.timeout_s,
    )
    rank_rows = config.data.global_batch_size // dataset.rank_slots.num_parts
    return RunComponents(
        corpus, model, loader, make_learning_rate_schedule(config, model.width), micro_rows(config, rank_rows)
    )


def make_validator(config: TrainConfig, components: RunComponents, context: DistributedContext) -> Validator | None:
    """Of the corpus' val split; None where it has none."""
    if not components.corpus.has("val"):
        return None
    dataset, data = components.loader.dataset, config.data
    return Validator(
        open_split(config, "val"),
        dataset.names,
        config.evaluate.max_samples_per_domain,
        context,
        components.micro_rows * dataset.settings.samples_per_row,
        dataset.settings.rows_per_sample,
        token_column=data.token_column,
        token_dtype=data.token_dtype,
    )


def open_split(config: TrainConfig, split: str) -> Corpus:
    """The corpus's train or val split, cached in the config's cache_dir, with the config's prior."""
    try:
        corpus = open_corpus(config.corpus, split, config.data.cache_dir)
    except NotFound as error:
        raise NotFound(
            f"{error}\n  It is 'corpus' in the run's config; change it there if the corpus has moved."
        ) from None
    prior = config.policy.prior
    if not prior:
        return corpus
    names = [domain.name for domain in corpus.domains]
    if split == "train" and set(prior) != set(names):
        differing = ", ".join(sorted(set(prior) ^ set(names)))
        raise ConfigError(f"'policy.prior' and the corpus differ in: {differing}. Give every domain a weight, or none.")
    domains = [dataclasses.replace(domain, prior=prior.get(domain.name, 0.0)) for domain in corpus.domains]
    return dataclasses.replace(corpus, domains=domains)


def model_config(config: TrainConfig, corpus: Corpus) -> ModelConfig:
    """The preset with the corpus's vocabulary and sequence length where the config gives none."""
    section = config.model
    if section.preset not in PRESETS:
        raise ConfigError(f"'model.preset' is {section.preset!r}; choose one of {', '.join(PRESETS)}.")
    vocab_size = corpus.tokenizer.vocab_size
    seq_len = max([corpus.seq_len, *(stage.section.seq_len or 0 for stage in run_stages(config))])
    if section.vocab_size is not None and section.vocab_size < vocab_size:
        raise ConfigError(f"'model.vocab_size' is {section.vocab_size}, the corpus has {vocab_size} tokens; raise it.")
    if section.context_length is not None and section.context_length < seq_len:
        raise ConfigError(
            f"'model.context_length' is {section.context_length}, the longest sequences have {seq_len} tokens.\n"
            f"  Set it to {seq_len} or more, or prepare the corpus with --seq-len {section.context_length}."
        )
    return dataclasses.replace(
        PRESETS[section.preset],
        vocab_size=section.vocab_size or _VOCAB_MULTIPLE * math.ceil(vocab_size / _VOCAB_MULTIPLE),
        context_length=section.context_length or seq_len,
        end_token=corpus.tokenizer.end_id if section.attention == "document" else None,
    )


def make_learning_rate_schedule(config: TrainConfig, width: int) -> LearningRateSchedule:
    """The learning-rate schedule; see TrainSection for what None means."""
    train = config.train
    warmup = train.warmup_steps if train.warmup_steps is not None else min(1000, train.steps // 10)
    peak = train.learning_rate if train.learning_rate is not None else _RATE_TIMES_WIDTH / width
    ends = [
        (stage.end, stage.section.learning_rate_end / peak)
        for stage in run_stages(config)
        if stage.section.learning_rate_end is not None
    ]
    if ends and ends[0][0] <= warmup:
        raise ConfigError(
            f"'learning_rate_end' of the stage that ends at step {ends[0][0]}: the warm-up is {warmup} steps long. "
            "Shorten it with train.warmup_steps."
        )
    return LearningRateSchedule(peak, warmup, train.steps, train.min_learning_rate_frac, ends)


def micro_rows(config: TrainConfig, rank_rows: int) -> int:
    """Rows of one forward and backward pass. With torch.compile they must divide the rank's rows: one shape only."""
    rows = min(config.train.micro_batch_size or rank_rows, rank_rows)
    if config.train.compile and rank_rows % rows:
        divisors = [each for each in range(1, rank_rows + 1) if rank_rows % each == 0]
        below, above = max(each for each in divisors if each < rows), min(each for each in divisors if each > rows)
        raise ConfigError(
            f"'train.micro_batch_size' is {rows}, a rank has {rank_rows} rows: the last {rank_rows % rows} would be "
            f"compiled separately.\n  Set it to {below} or {above}, or train.compile=false."
        )
    return rows


def make_dataset(config: TrainConfig, corpus: Corpus, context: DistributedContext) -> AdaptiveStreamingDataset:
    """This rank's data set."""
    data, names = config.data, [domain.name for domain in corpus.domains]
    for name in data.fim:
        known_name("domain", name, names, "'data.fim': ")
    domains = [dataclasses.replace(domain, fim=data.fim.get(domain.name)) for domain in corpus.domains]
    return AdaptiveStreamingDataset(
        dataclasses.replace(corpus, domains=domains),
        global_batch_size=data.global_batch_size,
        batch_seq_len=data.seq_len,
        seed=config.seed,
        canonical_nodes=data.canonical_nodes,
        mixture_lag=data.mixture_lag,
        sampling=data.sampling,
        cache_limit=parse_bytes(data.cache_limit),
        predownload=data.predownload,
        replication=data.replication,
        shuffle=data.shuffle,
        token_column=data.token_column,
        token_dtype=data.token_dtype,
        fim_tokens=data.fim_tokens,
        vocab_size=corpus.tokenizer.vocab_size,
        timeout_s=data.timeout_s,
        retry=RetryPolicy(**dataclasses.asdict(data.retry)),
        rank=context.rank,
        world_size=context.size,
    )


def make_run_policy(config: TrainConfig, corpus: Corpus, dataset: AdaptiveStreamingDataset) -> Policy:
    """The config's policy inside its guards; options that follow from the run are filled in."""
    val_sizes = {name: num_samples(corpus.manifest["domains"][name], "val") for name in dataset.names}
    section = config.policy
    given = {"name": section.name, "options": section.options, "guards": section.guards}
    return make_policy_for(
        dataset,
        given,
        config.train.steps,
        val_sizes=val_sizes,
        evaluate_every_steps=config.evaluate.every_steps if corpus.has("val") else 0,
        vocab_size=model_config(config, corpus).vocab_size,
        stages=planned_stages(config, corpus.seq_len),
    )


def parse_bytes(text: str | None) -> int | None:
    """The number of bytes in "50gb", "1.5 TB" or "800000000"; None for None."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?b?)\s*", text.lower(), re.ASCII)
    if match is None or match[2] not in _UNITS:
        raise ConfigError(f"'data.cache_limit' is {text!r}; give bytes, or a text such as 50gb.")
    return int(number("'data.cache_limit'", float(match[1]) * _UNITS[match[2]]))

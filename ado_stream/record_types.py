"""What readers of a run record take from its lines (their meaning: record.py); all else in a line is free.

Values by domain stand in lists of K numbers: readers turn them into arrays, which checks them.
"""

from typing import NotRequired, TypedDict

from ado_stream.value_types import JsonObject


class Line(TypedDict):
    """What every line has, and all but those of kind "run"."""

    kind: str
    step: NotRequired[int]


class CorpusDomain(TypedDict):
    """The size of one domain of the corpus."""

    tokens: int
    samples: int
    bytes: NotRequired[int | None]
    val_samples: NotRequired[int | None]


class CorpusOfRun(TypedDict, total=False):
    """The corpus of a run; `domains` by name."""

    path: str
    fingerprint: str
    domains: dict[str, CorpusDomain]


class ModelOfRun(TypedDict, total=False):
    """The model of a run."""

    preset: str
    parameters: int


class StageOfRun(TypedDict):
    """One stage of a run. None: as in the run."""

    steps: int
    step_samples: int
    global_batch_size: NotRequired[int | None]
    seq_len: NotRequired[int | None]


class RunLine(TypedDict):
    """A line of kind "run"."""

    version: int
    domains: list[str]
    run_id: NotRequired[str]
    created: NotRequired[str]
    prior: NotRequired[list[float | None] | None]
    policy: NotRequired[str]
    policy_options: NotRequired[JsonObject | None]
    floor: NotRequired[float | None]
    global_batch_size: NotRequired[int]
    seq_len: NotRequired[int]
    batch_seq_len: NotRequired[int]
    stages: NotRequired[list[StageOfRun] | None]
    canonical_nodes: NotRequired[int]
    mixture_lag: NotRequired[int]
    steps: NotRequired[int]
    seed: NotRequired[int]
    model: NotRequired[ModelOfRun | None]
    tokenizer: NotRequired[str]
    tokenizer_fingerprint: NotRequired[str]
    vocab_size: NotRequired[int]
    world_size: NotRequired[int]
    replication: NotRequired[int]
    device: NotRequired[str]
    versions: NotRequired[dict[str, str | None] | None]
    corpus: NotRequired[CorpusOfRun | None]
    first_step: NotRequired[int]


class StepLine(Line):
    """A line of kind "step"."""

    time_s: NotRequired[dict[str, float | None] | None]
    sample_losses: NotRequired[list[list[float | None]]]


class TextIdentity(TypedDict):
    """What identifies a domain's validation text: hashes of its tokens and of its first bytes."""

    tokens: str
    head: str


class EvaluationLine(Line):
    """A line of kind "eval"."""

    split: NotRequired[str]
    domain_text: NotRequired[list[TextIdentity | None] | None]


class EventLine(Line):
    """A line of kind "event"."""

    name: NotRequired[str]
    detail: NotRequired[JsonObject | None]


LINES: dict[str, type] = {"run": RunLine, "step": StepLine, "eval": EvaluationLine, "event": EventLine}


def corpus_domains(run: RunLine) -> dict[str, CorpusDomain]:
    """The sizes of a run's domains; empty where the record has none."""
    corpus = run.get("corpus")
    return corpus.get("domains", {}) if corpus else {}

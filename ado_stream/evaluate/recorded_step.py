"""The samples of a recorded step of a run, drawn again: their ids, tokens, documents and losses.

The step is drawn as it was trained on: from the newest position before it that is saved, in a checkpoint of the run or
the one that it began from, else from step 0, under the mixtures that the record holds, whatever policy or order made
them. Refused where that cannot be exact: another corpus or seed, steps that are missing, counts that differ.
"""

import itertools
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict, cast

import numpy as np
import torch

from ado_stream.corpus import Corpus
from ado_stream.corpus.document_origin import Documents, locate_documents
from ado_stream.errors import CheckpointError, ConfigError, DataError
from ado_stream.json_files import check_type
from ado_stream.record import read_run
from ado_stream.record_types import RunLine
from ado_stream.stream.dataset import AdaptiveStreamingDataset
from ado_stream.stream.slots import RankSlots
from ado_stream.train.checkpoint import read_metadata
from ado_stream.train.checkpoint_commit import MARKER, list_checkpoints
from ado_stream.train.components import make_dataset, open_split
from ado_stream.train.distributed import DistributedContext
from ado_stream.train.resume import CHECKPOINTS
from ado_stream.train.run_config import CONFIG_FILE, TrainConfig, load_config
from ado_stream.value_types import Array, JsonObject


@dataclass(frozen=True)
class RecordedSample:
    """One row of a step: a sample, a part of one, or several. loss: mean over its tokens, in nats; NaN: not finite.

    number: of the sample within its domain, of several the first. rank: that read it, the first of its replicas. rank,
    documents and loss are None where nothing says them; documents of several samples are left out.
    """

    slot: int
    rank: int | None
    domain: str
    number: int
    documents: Documents | None
    loss: float | None
    tokens: Array


@dataclass(frozen=True)
class Wanted:
    """Which samples of a step: those of one rank, and of these the `highest` recorded losses, the highest first."""

    step: int
    rank: int | None = None
    highest: int | None = None


class _DrawnLine(TypedDict):
    """What a step is drawn again from."""

    mixture: list[float]
    samples: list[int]


class _Position(TypedDict):
    """What is read of a stream's state before it is loaded."""

    step: int


def open_step(run_dir: Path, wanted: Wanted) -> tuple[Corpus, list[RecordedSample]]:
    """The run's corpus, and the samples of a step in the order of slots.

    Raises ConfigError: the step, its ranks or its losses are not recorded, or corpus and settings are not those of the
    record; ResumeError: they are not those of the checkpoint that it is drawn from.
    """
    step = wanted.step
    newest, lines = read_run(run_dir)
    starts = cast("list[RunLine]", lines["run"])
    recorded = {line["step"]: line for line in lines["step"]}
    state = _newest_state(run_dir, lines["event"], step)
    begin = 0 if state is None else state["step"]
    if step not in recorded or any(each not in recorded for each in range(begin, step)):
        steps = f"{min(recorded)} to {max(recorded)}" if recorded else "none"
        raise ConfigError(
            f"--step {step}: {run_dir} recorded steps {steps}; a step is drawn again from all before it, or from all "
            "since a checkpoint."
        )
    for each in range(begin, step + 1):
        check_type(recorded[each], _DrawnLine, f"{run_dir}: step {each} of its record", DataError)
    config = load_config(run_dir / CONFIG_FILE)
    corpus = open_split(config, "train")
    for place, numbers in itertools.groupby(range(begin, step + 1), key=lambda each: _start_of(starts, each)):
        start = None if place is None else starts[place]
        run = start or newest
        _check_same(run_dir, run, config, corpus)
        dataset = _dataset(config, corpus, run)
        try:
            if state is not None:
                dataset.load_state_dict(state)
            for before in numbers:
                if before == step:
                    dataset.publish(step, recorded[step]["mixture"])
                    _check_counts(run_dir, step, dataset.sample_counts(step).tolist(), recorded[step]["samples"])
                    return corpus, _samples(corpus, dataset, recorded[step], _ranks(dataset, start), wanted)
                dataset.skip(recorded[before]["mixture"])
            state = dataset.state_dict()
        finally:
            dataset.close()
    raise AssertionError("the last group ends with the step")


def _start_of(starts: list[RunLine], step: int) -> int | None:
    """Which start of the run trained `step`: the last that began by then; None: the record does not say."""
    begun = (number for number, line in enumerate(starts) if line.get("first_step", step + 1) <= step)
    return max(begun, default=None)


def _dataset(config: TrainConfig, corpus: Corpus, run: RunLine) -> AdaptiveStreamingDataset:
    """The data set of one start of the run, all of it in one rank."""
    batch = run.get("global_batch_size", config.data.global_batch_size)
    seq_len = run.get("batch_seq_len", config.data.seq_len)
    data = replace(config.data, global_batch_size=batch, seq_len=seq_len, replication=1, predownload=batch)
    return make_dataset(replace(config, data=data), corpus, DistributedContext(0, 1, torch.device("cpu")))


def _newest_state(run_dir: Path, events: list[JsonObject], step: int) -> JsonObject | None:
    """The state of the stream at the newest step up to `step` that a checkpoint holds; None: none does."""
    resumed = [(event.get("detail") or {}).get("checkpoint") for event in events if event.get("name") == "resume"]
    directories = [*list_checkpoints(run_dir / CHECKPOINTS), *(Path(each) for each in resumed if isinstance(each, str))]
    states: list[JsonObject] = []
    for directory in directories:
        if (directory / MARKER).exists():
            with suppress(CheckpointError):  # damaged: the step may follow from another one
                state: JsonObject = read_metadata(directory)["loader"].get("stream", {})
                check_type(state, _Position, str(directory), CheckpointError)
                states.append(state)
    return max((state for state in states if state["step"] <= step), key=lambda state: state["step"], default=None)


def _check_same(run_dir: Path, run: RunLine, config: TrainConfig, corpus: Corpus) -> None:
    """Raises ConfigError unless the order of the data is that of the recorded run."""
    now = {
        "seed": config.seed,
        "canonical_nodes": config.data.canonical_nodes,
        "mixture_lag": config.data.mixture_lag,
        "domains": [domain.name for domain in corpus.domains],
        "fingerprint of the corpus": corpus.manifest["fingerprint"],
    }
    then = {**run, "fingerprint of the corpus": (run.get("corpus") or {}).get("fingerprint")}
    other = [f"{key} {then[key]!r}, now {value!r}" for key, value in now.items() if then.get(key, value) != value]
    if other:
        raise ConfigError(
            f"{run_dir}: its {CONFIG_FILE} and corpus are not those of its record: {'; '.join(other)}.\n"
            "  Restore what the run was trained on."
        )


def _check_counts(run_dir: Path, step: int, found: list[int], expected: list[int]) -> None:
    if found != expected:
        raise ConfigError(
            f"{run_dir}: step {step} is drawn with {found} samples of the domains, but {expected} were recorded.\n"
            "  Its record or config.yaml was changed."
        )


def _ranks(dataset: AdaptiveStreamingDataset, start: RunLine | None) -> list[int | None]:
    """The rank that read each row in a start of the run."""
    rank_B: list[int | None] = [None] * dataset.settings.global_batch_size
    if start is not None:
        world_size, replication = start.get("world_size", 1), start.get("replication", 1)
        if not replication or not world_size or world_size % replication:
            raise DataError(f"the record has {world_size} ranks that read {replication} times the same.")
        RankSlots(0, world_size, replication).slots(dataset.settings)  # raises where no batch can be cut so
        for rank in range(0, world_size, replication):
            rows = RankSlots(rank, world_size, replication).rows(dataset.settings)
            rank_B[rows] = [rank] * (rows.stop - rows.start)
    return rank_B


def _samples(
    corpus: Corpus, dataset: AdaptiveStreamingDataset, line: JsonObject, rank_B: list[int | None], wanted: Wanted
) -> list[RecordedSample]:
    losses = _sample_losses(line, len(rank_B))
    slots = _chosen(wanted, rank_B, list(losses))
    num_samples_K, settings = dataset.num_samples, dataset.settings
    id_B = dataset.sample_ids(wanted.step)[:: settings.samples_per_row].repeat(settings.rows_per_sample)
    dataset.start(prefetch=0, io_threads=4)
    batch = dataset.next_batch()
    domain_B = batch["domain"].numpy()
    number_B = id_B - (num_samples_K.cumsum() - num_samples_K)[domain_B]
    documents: dict[int, Documents] = {}
    for k in set(domain_B[slots].tolist()):
        of_domain = [slot for slot in slots if domain_B[slot] == k]
        found = None
        if settings.samples_per_row == 1:
            found = locate_documents(corpus, corpus.domains[k], number_B[of_domain])
        documents.update(zip(of_domain, found or (), strict=False))
    return [
        RecordedSample(
            slot=slot,
            rank=rank_B[slot],
            domain=dataset.names[domain_B[slot]],
            number=int(number_B[slot]),
            documents=documents.get(slot),
            loss=losses.get(slot),
            tokens=batch["tokens"][slot].numpy(),
        )
        for slot in slots
    ]


def _sample_losses(line: JsonObject, num_slots: int) -> dict[int, float]:
    """{slot: loss} of a line, the highest first. Raises DataError unless they are of `num_slots` slots."""
    pairs: list[list[float | None]] = line.get("sample_losses", [])
    if any(len(pair) != 2 or pair[0] not in range(num_slots) for pair in pairs):
        raise DataError(f"step {line['step']} of the record: 'sample_losses' are not of {num_slots} slots.")
    return {int(slot or 0): np.nan if loss is None else loss for slot, loss in pairs}


def _chosen(wanted: Wanted, rank_B: list[int | None], by_loss: list[int]) -> list[int]:
    """The wanted slots; by_loss: those of the recorded losses, the highest first."""
    if wanted.rank is not None and wanted.rank not in rank_B:
        ranks = sorted({rank for rank in rank_B if rank is not None})
        known = (
            f"its ranks were {', '.join(map(str, ranks))}" if ranks else "the record does not say which ranks it had"
        )
        raise ConfigError(f"--rank {wanted.rank}: of step {wanted.step} {known} (the first of each that share rows).")
    if wanted.highest is not None and not by_loss:
        raise ConfigError(
            f"--highest {wanted.highest}: step {wanted.step} has no losses of samples; they are recorded by "
            "log.sample_losses=N in the run's config."
        )
    slots = range(len(rank_B)) if wanted.highest is None else by_loss
    return [slot for slot in slots if wanted.rank in (None, rank_B[slot])][: wanted.highest]

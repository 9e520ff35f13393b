"""The samples of a recorded step of a run, drawn again: their ids, tokens, documents and losses.

The step is drawn as it was trained on: from the newest position before it that is saved, in a checkpoint of the run or
the one that it began from, else from step 0, under the mixtures that the record holds, whatever policy or order made
them. Refused where that cannot be exact: another corpus or seed, steps that are missing, counts that differ.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ado_stream.corpus import Corpus
from ado_stream.corpus.document_origin import Documents, documents_of
from ado_stream.errors import CheckpointError, ConfigError
from ado_stream.record import read_run
from ado_stream.stream.dataset import AdaptiveStreamingDataset
from ado_stream.stream.slots import RankSlots
from ado_stream.train.checkpoint import read_metadata
from ado_stream.train.checkpoint_commit import MARKER, list_checkpoints
from ado_stream.train.components import make_dataset, open_split
from ado_stream.train.config import TrainConfig, load_config
from ado_stream.train.distributed import DistributedContext
from ado_stream.train.resume import CHECKPOINTS
from ado_stream.train.trainer import CONFIG_FILE
from ado_stream.value_types import Array, JsonMapping, JsonObject


@dataclass(frozen=True)
class RecordedSample:
    """One sample of a step. number: within its domain. loss: mean over its tokens, in nats; NaN: not finite.

    rank: that read it, the first of its replicas. rank, documents and loss are None where nothing says them.
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


def open_step(run_dir: Path, wanted: Wanted) -> tuple[Corpus, list[RecordedSample]]:
    """The run's corpus, and the samples of a step in the order of slots.

    Raises ConfigError: the step, its ranks or its losses are not recorded, or corpus and settings are not those of the
    record; ResumeError: they are not those of the checkpoint that it is drawn from.
    """
    step = wanted.step
    run, lines = read_run(run_dir)
    recorded = {line["step"]: line for line in lines["step"]}
    state = _newest_state(run_dir, lines["event"], step)
    begin = 0 if state is None else state["step"]
    if any(each not in recorded for each in range(begin, step + 1)):
        steps = f"{min(recorded)} to {max(recorded)}" if recorded else "none"
        raise ConfigError(
            f"--step {step}: {run_dir} recorded steps {steps}; a step is drawn again from all before it, or from all "
            "since a checkpoint."
        )
    config = load_config(run_dir / CONFIG_FILE)
    config.data.replication, config.data.predownload = 1, config.data.global_batch_size
    corpus = open_split(config, "train")
    dataset = make_dataset(config, corpus, DistributedContext(0, 1, torch.device("cpu")))
    _check_same(run_dir, run, config, corpus)
    try:
        if state is not None:
            dataset.load_state_dict(state)
        for before in range(begin, step):
            dataset.skip(recorded[before]["mixture"])
        dataset.publish(step, recorded[step]["mixture"])
        _check_counts(run_dir, step, dataset.sample_counts(step).tolist(), recorded[step]["samples"])
        return corpus, _samples(corpus, dataset, recorded[step], _ranks(dataset, lines["run"], step), wanted)
    finally:
        dataset.close()


def _newest_state(run_dir: Path, events: list[JsonObject], step: int) -> Any:
    """The state of the stream at the newest step up to `step` that a checkpoint holds; None: none does."""
    directories = list_checkpoints(run_dir / CHECKPOINTS)
    directories += [Path(event["detail"]["checkpoint"]) for event in events if event.get("name") == "resume"]
    states = []
    for directory in directories:
        if (directory / MARKER).exists():
            with suppress(CheckpointError, KeyError):  # damaged: the step may follow from another one
                states.append(read_metadata(directory)["loader"]["stream"])
    return max((state for state in states if state["step"] <= step), key=lambda state: state["step"], default=None)


def _check_same(run_dir: Path, run: JsonMapping, config: TrainConfig, corpus: Corpus) -> None:
    """Raises ConfigError unless the order of the data is that of the recorded run."""
    now = {
        "seed": config.seed,
        "global_batch_size": config.data.global_batch_size,
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


def _ranks(dataset: AdaptiveStreamingDataset, run_lines: list[JsonObject], step: int) -> list[int | None]:
    """The rank that read each slot in the start of the run that trained `step`: the last that began by then."""
    settings = dataset.settings
    started = next((line for line in reversed(run_lines) if line.get("first_step", step + 1) <= step), None)
    rank_B: list[int | None] = [None] * settings.global_batch_size
    if started is not None:
        for rank in range(0, started["world_size"], started["replication"]):
            place = RankSlots(rank, started["world_size"], started["replication"])
            slots = place.slots(settings.global_batch_size, settings.num_lanes)
            rank_B[slots] = [rank] * (slots.stop - slots.start)
    return rank_B


def _samples(
    corpus: Corpus, dataset: AdaptiveStreamingDataset, line: JsonObject, rank_B: list[int | None], wanted: Wanted
) -> list[RecordedSample]:
    losses = {slot: np.nan if loss is None else loss for slot, loss in line.get("sample_losses", ())}
    slots = _chosen(wanted, rank_B, list(losses))
    num_samples_K = dataset.num_samples
    id_B = dataset.sample_ids(wanted.step)
    dataset.start(prefetch=0, io_threads=4)
    batch = dataset.next_batch()
    domain_B = batch["domain"].numpy()
    number_B = id_B - (num_samples_K.cumsum() - num_samples_K)[domain_B]
    documents: dict[int, Documents] = {}
    for k in set(domain_B[slots].tolist()):
        of_domain = [slot for slot in slots if domain_B[slot] == k]
        found = documents_of(corpus, corpus.domains[k], number_B[of_domain])
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

"""The fields of the run record's "run" and "fit" lines (schema: ado_stream/record.py)."""

import dataclasses
from datetime import UTC, datetime
from importlib import metadata

from ado_model import ModelConfig
from ado_stream import record
from ado_stream.corpus import Corpus
from ado_stream.corpus.manifest import DomainEntry, num_samples
from ado_stream.loader import AdaptiveLoader
from ado_stream.policy.base_policy import Policy
from ado_stream.train.distributed import DistributedContext
from ado_stream.train.run_config import TrainConfig
from ado_stream.train.stages import planned_stages
from ado_stream.value_types import Ints, JsonObject

_PACKAGES = ("ado-stream", "torch", "numpy", "numba", "mosaicml-streaming")


def run_line(
    config: TrainConfig,
    corpus: Corpus,
    loader: AdaptiveLoader,
    model: ModelConfig,
    context: DistributedContext,
    run_id: str,
) -> JsonObject:
    """The fields of a "run" line."""
    dataset, manifest = loader.dataset, corpus.manifest
    return {
        "version": record.VERSION,
        "run_id": run_id,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "domains": dataset.names,
        "prior": dataset.prior,
        "policy": config.policy.name,
        "policy_options": {
            **config.policy.options,
            **({"guards": config.policy.guards} if config.policy.guards else {}),
        },
        "floor": loader.policy.floor,
        "global_batch_size": config.data.global_batch_size,
        "seq_len": dataset.seq_len,
        "batch_seq_len": dataset.batch_seq_len,
        "stages": [
            {**dataclasses.asdict(stage), "step_samples": planned.step_samples}
            for stage, planned in zip(config.stages, planned_stages(config, dataset.seq_len), strict=False)
        ],
        "canonical_nodes": config.data.canonical_nodes,
        "mixture_lag": config.data.mixture_lag,
        "steps": config.train.steps,
        "seed": config.seed,
        "model": {"preset": config.model.preset, "parameters": model.num_parameters},
        "tokenizer": corpus.tokenizer.name,
        "tokenizer_fingerprint": corpus.tokenizer.fingerprint,
        "vocab_size": model.vocab_size,
        "world_size": context.size,
        "replication": config.data.replication,
        "first_step": loader.step,
        "device": str(context.device),
        "versions": {name: _version(name) for name in _PACKAGES},
        "corpus": {
            "path": config.corpus,
            "fingerprint": manifest["fingerprint"],
            "domains": {name: _domain(manifest["domains"][name]) for name in dataset.names},
        },
    }


def fit_line(policy: Policy, drawn_K: Ints) -> JsonObject:
    """The fields of a "fit" line; drawn_K: samples of each domain up to and with the step of the fit."""
    fit = policy.fit
    assert fit is not None, "called after a refit"
    return {
        "step": policy.fit_step,
        "n": policy.law_counts(drawn_K),
        "log_beta": fit.log_beta,
        "log_eps": fit.log_eps,
        "alpha": fit.alpha,
        "objective": fit.objective,
        "valid": fit.valid,
        "at_bound": fit.at_bound,
        "residual_scale": fit.residual_scale,
        "num_points": fit.num_points,
    }


def _domain(entry: DomainEntry) -> JsonObject:
    train = entry["splits"]["train"]
    sizes = {"tokens": train["tokens"], "samples": train["samples"], "bytes": entry["bytes"]}
    return {**sizes, "val_samples": num_samples(entry, "val")}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None

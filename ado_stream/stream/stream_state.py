"""The state of a stream as JSON: the next step, a cursor per domain and lane, the mixtures of steps to come.

Ranks, nodes and threads are not in it: the state is the same on every rank, and any number of ranks may load it. Keys:

    version            1
    identity           what the order depends on: seed, global_batch_size, canonical_nodes, mixture_lag, sampling,
                       shuffle
    step               next step to be handed out
    domains            {name: {fingerprint, versions, samples, cursors: [C] drawn so far per lane}}, in the mixture's
                       order; versions: only of data without hashes, see open_indexes.py
    mixtures           {step: [K]} known for steps from `step` on ("-1": that of the step before, without a lag)
"""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from ado_stream.errors import ResumeError
from ado_stream.stream.mds_index import MdsIndex

VERSION = 1
_log = logging.getLogger(__name__)


def encode_state(
    identity: dict[str, Any], indexes: list[MdsIndex], step: int, cursors_KC: np.ndarray, pending: dict[int, np.ndarray]
) -> dict[str, Any]:
    """The state as a JSON-able dict."""
    return {
        "version": VERSION,
        "identity": dict(identity),
        "step": step,
        "domains": {
            index.name: {
                "fingerprint": index.fingerprint,
                **({"versions": index.versions} if index.versions else {}),
                "samples": index.num_samples,
                "cursors": cursor_C,
            }
            for index, cursor_C in zip(indexes, cursors_KC.tolist(), strict=True)
        },
        "mixtures": {str(key): mixture_K.tolist() for key, mixture_K in pending.items()},
    }


def decode_state(
    state: Mapping[str, Any], identity: dict[str, Any], indexes: list[MdsIndex]
) -> tuple[int, np.ndarray, dict[int, np.ndarray]]:
    """(step, cursors (K, C) int64, pending mixtures) of `state` for the domains of `indexes`.

    A domain that is not in the state starts at its first sample, with share 0 until a new mixture is published; one
    that is only in the state is dropped and its pending share goes to the others in proportion; both are logged. Raises
    ResumeError for another version, other settings (all named), and a domain whose data changed (named).
    """
    _check(state, identity, indexes)
    saved = state["domains"]
    names = [index.name for index in indexes]
    cursors_KC = np.zeros((len(names), identity["canonical_nodes"]), np.int64)
    for k, name in enumerate(names):
        if name in saved:
            cursors_KC[k] = saved[name]["cursors"]
    added, retired = [n for n in names if n not in saved], [n for n in saved if n not in names]
    if added or retired:
        _log.warning("resuming with other domains: added %s; retired %s", added or "none", retired or "none")
    column = {name: number for number, name in enumerate(saved)}
    pending = {}
    for key, mixture in state["mixtures"].items():
        mixture_K = np.array([mixture[column[name]] if name in column else 0.0 for name in names])
        total = mixture_K.sum()
        if total > 0:  # 0: all its share was with retired domains
            # Divided only after a change of domains: otherwise the last bit could differ from the saved mixture.
            pending[int(key)] = mixture_K / total if added or retired else mixture_K
    return int(state["step"]), cursors_KC, pending


def _check(state: Mapping[str, Any], identity: dict[str, Any], indexes: list[MdsIndex]) -> None:
    if not isinstance(state, Mapping) or state.get("version") != VERSION:
        found = state.get("version") if isinstance(state, Mapping) else type(state).__name__
        raise ResumeError(f"stream state of version {found!r}; this ado-stream reads version {VERSION}.")
    try:
        saved, domains = state["identity"], state["domains"]
        state["step"], state["mixtures"]
    except KeyError as error:
        raise ResumeError(f"stream state without {error}; it is damaged or not a stream's state.") from None
    other = [f"{key} {saved.get(key)!r} -> {value!r}" for key, value in identity.items() if saved.get(key) != value]
    if other:
        raise ResumeError(f"the stream was saved with other settings: {'; '.join(other)}. Use the saved ones.")
    known = {index.name: index for index in indexes}
    shared = [name for name in domains if name in known]
    if not shared:
        raise ResumeError(f"none of the saved domains ({', '.join(domains)}) is in this data set: {', '.join(known)}.")
    for name in shared:
        if domains[name]["fingerprint"] != known[name].fingerprint:
            raise ResumeError(
                f"domain '{name}': its shards are not those of the saved run ({domains[name]['samples']} samples then, "
                f"{known[name].num_samples} now).\n  Restore the old shards, or add the new data under another name."
            )
        versions = domains[name].get("versions", "")
        if versions and known[name].versions and versions != known[name].versions:
            raise ResumeError(
                f"domain '{name}': its index has no hashes, and its shards have other times or tags than those of the "
                "saved run.\n  Restore the old shards (copy them with their times), or write them with "
                "hashes=['xxh64'] from the start."
            )

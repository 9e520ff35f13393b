"""The state of a stream as JSON: the next step, a cursor per domain and lane, the mixtures of steps to come.

Ranks, nodes and threads are not in it: the state is the same on every rank, and any number of ranks may load it. Keys:

    version            1
    identity           what the order depends on: seed, canonical_nodes, mixture_lag, sampling, shuffle; and what may
                       be another at a resume: global_batch_size, batch_seq_len
    step               next step to be yielded
    domains            {name: {fingerprint, versions, samples, cursors: [C] drawn so far per lane, fim}}, in the
                       mixture's order; versions: only of data without hashes, see open_indexes.py; fim: of domains
                       with fill-in-the-middle
    mixtures           {step: [K]} known for steps from `step` on ("-1": that of the step before, without a lag)
    mixture_steps      those steps; what fills in another state (torch.distributed.checkpoint) loses some unnoticed
"""

import logging
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ado_stream.errors import ResumeError
from ado_stream.stream.board import is_mixture
from ado_stream.stream.sample_index import SampleIndex
from ado_stream.value_types import Floats, Ints, JsonMapping, JsonObject

StreamState = tuple[int, Ints, dict[int, Floats]]  # step, cursors (K, C) int64, mixtures of steps to come
VERSION = 1
_MAY_CHANGE = ("global_batch_size", "batch_seq_len")  # cursors count samples, whatever a step takes of them
_MAX_POSITION = 1 << 62
_log = logging.getLogger(__name__)


def encode_state(
    identity: JsonObject,
    indexes: Sequence[SampleIndex],
    fims: Mapping[str, JsonObject],
    step: int,
    cursors_KC: Ints,
    pending: dict[int, Floats],
) -> JsonObject:
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
                **({"fim": fims[index.name]} if index.name in fims else {}),
            }
            for index, cursor_C in zip(indexes, cursors_KC.tolist(), strict=True)
        },
        "mixtures": {str(key): mixture_K.tolist() for key, mixture_K in pending.items()},
        "mixture_steps": list(pending),
    }


def decode_state(
    state: JsonMapping, identity: JsonObject, indexes: Sequence[SampleIndex], fims: Mapping[str, JsonObject]
) -> StreamState:
    """(step, cursors, pending mixtures) of `state` for the domains of `indexes`.

    A domain that is not in the state starts at its first sample, with share 0 until a new mixture is published; one
    that is only in the state is dropped and its pending share goes to the others in proportion; both are logged, as is
    another batch. Raises ResumeError for another version, other settings (all named), a domain whose data changed
    (named), and damage.
    """
    _check(state, identity, indexes, fims)
    saved = state["domains"]
    names = [index.name for index in indexes]
    cursors_KC = np.zeros((len(names), identity["canonical_nodes"]), np.int64)
    for k, name in enumerate(names):
        if name in saved:
            cursors_KC[k] = saved[name]["cursors"]
    added, retired = [n for n in names if n not in saved], [n for n in saved if n not in names]
    if added or retired:
        _log.warning("resuming with other domains: added %s; retired %s", added or "none", retired or "none")
    if changed := _differences(state["identity"], identity, _MAY_CHANGE):
        _log.warning("resuming at step %d with another batch: %s", state["step"], "; ".join(changed))
    column = {name: number for number, name in enumerate(saved)}
    pending = {}
    for key, mixture in state["mixtures"].items():
        mixture_K = np.array([mixture[column[name]] if name in column else 0.0 for name in names])
        total = mixture_K.sum()
        if total > 0:  # 0: all its share was with retired domains
            # Divided only after a change of domains: otherwise the last bit could differ from the saved mixture.
            pending[int(key)] = mixture_K / total if added or retired else mixture_K
    return int(state["step"]), cursors_KC, pending


def _check(
    state: JsonMapping, identity: JsonObject, indexes: Sequence[SampleIndex], fims: Mapping[str, JsonObject]
) -> None:
    if not isinstance(state, Mapping) or state.get("version") != VERSION:
        found = state.get("version") if isinstance(state, Mapping) else type(state).__name__
        raise ResumeError(f"stream state of version {found!r}; this ado-stream reads version {VERSION}.")
    saved, domains = _part(state, "identity"), _part(state, "domains")
    if other := _differences(saved, identity, [key for key in identity if key not in _MAY_CHANGE]):
        raise ResumeError(f"the stream was saved with other settings: {'; '.join(other)}. Use the saved ones.")
    _check_numbers(state, identity["canonical_nodes"])
    known = {index.name: index for index in indexes}
    shared = [name for name in domains if name in known]
    if not shared:
        raise ResumeError(f"none of the saved domains ({', '.join(domains)}) is in this data set: {', '.join(known)}.")
    for name in shared:
        if domains[name].get("fingerprint") != known[name].fingerprint:
            raise ResumeError(
                f"domain '{name}': its shards are not those of the saved run ({domains[name].get('samples')} samples "
                f"then, {known[name].num_samples} now).\n"
                "  Restore the old shards, or add the new data under another name."
            )
        if domains[name].get("fim") != fims.get(name):
            raise ResumeError(
                f"domain '{name}': the stream was saved with fill-in-the-middle {domains[name].get('fim')}, now "
                f"{fims.get(name)}. Use the saved one."
            )
        versions = domains[name].get("versions")
        if versions and known[name].versions and versions != known[name].versions:
            raise ResumeError(
                f"domain '{name}': its index has no hashes, and its shards have other times or tags than those of the "
                "saved run.\n  Restore the old shards (copy them with their times), or write them with "
                "hashes=['xxh64'] from the start."
            )


def _differences(saved: JsonMapping, now: JsonMapping, keys: Iterable[str]) -> list[str]:
    return [f"{key} {saved.get(key)!r} -> {now[key]!r}" for key in keys if saved.get(key) != now[key]]


def _check_numbers(state: JsonMapping, num_lanes: int) -> None:
    """Raises ResumeError unless step, cursors and mixtures are numbers that a run can have."""
    domains, mixtures = _part(state, "domains"), _part(state, "mixtures")
    if not _is_position(state.get("step")):
        raise _damaged(f"'step' is {state.get('step')!r}, not a step")
    for key in _MAY_CHANGE:
        value = _part(state, "identity").get(key)
        if not (_is_position(value) or (value is None and key == "batch_seq_len")):
            raise _damaged(f"{key!r} is {value!r:.40}")
    for name in domains:
        cursor_C = _part(domains, name).get("cursors")
        if not (isinstance(cursor_C, list) and len(cursor_C) == num_lanes and all(map(_is_position, cursor_C))):
            raise _damaged(f"domain '{name}' does not have {num_lanes} positions under 'cursors'")
        if not _is_position(domains[name].get("samples")):
            raise _damaged(f"domain '{name}' has {domains[name].get('samples')!r:.40} samples")
    steps = state.get("mixture_steps", [])  # older states have none
    if not isinstance(steps, list) or (missing := [each for each in steps if str(each) not in mixtures]):
        which = (
            f"the mixture of step {missing[0]} is missing" if isinstance(steps, list) else "'mixture_steps' is no list"
        )
        raise ResumeError(
            f"not the state of a stream, or damaged: {which}. Resume from another checkpoint.\n"
            "  (torch.distributed.checkpoint leaves out keys that a new state has not; save json.dumps(state) there.)"
        )
    for key, mixture in mixtures.items():
        try:
            mixture_K = np.array(mixture, np.float64)
            good = int(key) >= -1 and mixture_K.shape == (len(domains),) and is_mixture(mixture_K)
        except (ValueError, TypeError, OverflowError):
            good = False
        if not good:
            raise _damaged(f"'mixtures' has no {len(domains)} probabilities for step {key!r}")


def _part(state: JsonMapping, key: str) -> JsonMapping:
    part = state.get(key)
    if not isinstance(part, Mapping):
        raise _damaged(f"{key!r} is {'missing' if part is None else 'not an object'}")
    return part


def _is_position(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_POSITION


def _damaged(what: str) -> ResumeError:
    return ResumeError(f"not the state of a stream, or damaged: {what}. Resume from another checkpoint.")

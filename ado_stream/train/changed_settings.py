"""Differences between a run's settings and those of the checkpoint that it resumes from.

They may be intended, as a longer run or a lower learning rate. So they are shown before the first step and recorded,
together with the old learning rate of the next step, since a changed schedule makes it jump.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from ado_stream.corpus.manifest import JOIN
from ado_stream.redact import plain
from ado_stream.suggest import first_names
from ado_stream.train.checkpoint import Found, Schedule, Settings
from ado_stream.train.components import RunComponents
from ado_stream.train.distributed import DistributedContext
from ado_stream.train.run_config import TrainConfig
from ado_stream.train.train_step import LearningRateSchedule
from ado_stream.value_types import JsonMapping

_EXPECTED = {"run_dir"}  # differ whenever another run's checkpoint is named

Changes = dict[str, tuple[object, object]]  # setting: (saved, now)


def saved_settings(config: TrainConfig, components: RunComponents, context: DistributedContext) -> Settings:
    """What a checkpoint holds to be compared with: the config, without credentials, what follows from it, and what
    comes from elsewhere."""
    dataset, corpus = components.loader.dataset, components.corpus
    found: Found = {
        "ranks": context.size,
        "device": context.device.type,
        "end_token": corpus.end_token,
        "packing": corpus.manifest.get("packing", JOIN),
        "prior": dict(zip(dataset.names, dataset.prior.tolist(), strict=True)),
        "data": {name: corpus.manifest["domains"][name]["fingerprint"] for name in dataset.names},
    }
    schedule = cast(Schedule, dataclasses.asdict(components.schedule))
    return {"config": plain(dataclasses.asdict(config)), "schedule": schedule, "found": found}


def changed_settings(
    saved: Settings | None, saved_domains: Sequence[str], now: Settings, domains: Sequence[str], next_step: int
) -> Changes:
    """Dotted keys of the config that differ, domains retired and added, what else was found to differ, the learning
    rate of `next_step`.

    saved: of the checkpoint; None in those written before settings were saved.
    """
    changes: Changes = {}
    if saved is not None:
        before, after = dict(_flat(saved["config"])), dict(_flat(now["config"]))
        differing = [key for key in {**before, **after} if before.get(key) != after.get(key) and key not in _EXPECTED]
        changes = {key: (before.get(key), after.get(key)) for key in differing}
        if "found" in saved:
            changes |= _found_changes(saved["found"], now["found"])
    retired, added = set(saved_domains) - set(domains), set(domains) - set(saved_domains)
    if retired:
        changes["domains retired"] = first_names(sorted(retired), 5), None
    if added:
        changes["domains added"] = None, first_names(sorted(added), 5)
    if saved is not None:
        rates = [LearningRateSchedule(**settings["schedule"])(next_step) for settings in (saved, now)]
        if rates[0] != rates[1]:
            changes[f"learning rate of step {next_step}"] = rates[0], rates[1]
    return changes


def changes_table(changes: Changes) -> str:
    """Three columns with a title; one line for each setting."""
    rows = [("setting", "saved", "now")]
    for name, (before, now) in changes.items():
        as_text = repr if _text(before) == _text(now) else _text  # 3e-4 -> 3.00001e-4
        rows.append((name, as_text(before), as_text(now)))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    lines = [f"  {name:<{widths[0]}}  {before:<{widths[1]}}  {now}" for name, before, now in rows]
    return "\n".join(["resumed with other settings than the checkpoint was saved with:", *lines])


def _flat(values: JsonMapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
            value = {str(number): each for number, each in enumerate(value)}
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _found_changes(saved: Found, now: Found) -> Changes:
    """What differs; of the prior those domains that both have, whose shares one that is added leaves in proportion."""
    both = saved["prior"].keys() & now["prior"].keys()
    priors = [{name: found["prior"][name] for name in sorted(both)} for found in (saved, now)]
    shares = [{name: share / (sum(prior.values()) or 1) for name, share in prior.items()} for prior in priors]
    others = [name for name in shares[0] if not math.isclose(shares[0][name], shares[1][name], rel_tol=1e-9)]
    changes = {
        key.replace("_", " "): (saved[key], now[key])  # type: ignore[literal-required]
        for key in now
        if key not in ("prior", "data") and saved[key] != now[key]  # type: ignore[literal-required]
    }
    if others:
        before, after = (first_names([f"{name} {share[name]:.4g}" for name in others], 5) for share in shares)
        changes["prior"] = before, after
    data = saved.get("data", {}), now.get("data", {})
    other_data = sorted(name for name in data[0].keys() & data[1].keys() if data[0][name] != data[1][name])
    if other_data:  # other training data are refused
        before, after = (first_names([f"{name} {each[name][:8]}" for name in other_data], 5) for each in data)
        changes["validation data"] = before, after
    return changes


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)

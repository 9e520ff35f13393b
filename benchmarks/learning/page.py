"""The page of the experiments, written from cells alone: tables, planes, what was found, where the method loses.

    python -m benchmarks learning --out RUNS --name ten python --docs docs/learning.md

Beside the page lie the planes, learning_planes_NAME_light.svg and _dark.svg. Pages in the same folder, and the README
above it, that hold the line SUMMARY_BEGIN get a short table up to SUMMARY_END. Invariant: equal cells give equal files,
and every sentence with a figure is computed from them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.learning import outcome
from benchmarks.learning.mechanism import WINDOW, laws_table
from benchmarks.learning.picture import draw_planes
from benchmarks.learning.scenarios import BASELINE, CONTROL, OTHERS, SCENARIOS, SENSITIVITY, SIZES, STATIC, Sizes

Cells = tuple[Mapping[int, Mapping[str, Mapping[str, Any]]], Mapping[str, Any]]  # ({seed: {policy: cell}}, facts)
SUMMARY_BEGIN, SUMMARY_END = "<!-- learning -->", "<!-- /learning -->"
LEVEL_NATS = 0.005  # smaller differences are none: what other draws do to a run, and the bar of `target` on clean text
_INTRO = """\
# What mixing does to a model

Real runs, small enough to repeat. This page is written by a command from the results of single runs, its sentences too:

    python -m benchmarks learning --out RUNS --name {names} --docs docs/learning.md

**How.** {setup} The first
tenth of a run is trained once for a seed, under the natural mixture; from that checkpoint each policy goes on alone,
with each domain's text in the same order. So differences within a seed are the mixture's and chance's, and
chance is measured: `{control}` is the natural mixture with other samples. Scenarios, policies and their settings
stand in `benchmarks/learning/scenarios.py`, fixed before the seeds were run. A cell that is run again gives its
numbers again. The rule by which `target` cuts and gives back was revised three times: after seeds 1 to 3, by replays of
the losses of seeds 1 to 5, and after seeds 1 to 7 of `unlearnable-10`, by simulations and by trying six variants on
those seeds. All cells that it changes were then run anew, and seeds 8 to 12 of `unlearnable-10` for the first time.
After three seeds of `target:weights=uniform` on clean text, which it had lost 0.06 nats in the mean of domains, it
counts samples otherwise where another mixture was drawn before; those cells were run anew, and seeds 4 and 5 for the
first time.

**What is measured.** Loss on held-out text of the wanted domains, nats per token, less that of the natural mixture of
the same seed: negative is better. *By size* weights domains by their tokens, *mean* counts each once, *worst* is the
highest loss of a domain; bits per byte are by size. *Steps to natural's loss* is the part of the run after which a
policy is where the natural mixture is near the end. ± is half of a 95 % interval over seeds (Student's t), wide where
there are two seeds; without it there is one. An added domain's share is of all samples, and it is not measured; the
*oracle* is the natural mixture without it. In the planes the grey line joins the static mixtures, from natural to
uniform: no static mixture reaches what is below and left of it.
"""


@dataclass(frozen=True)
class Corpus:
    """What is known of a corpus: {scenario: cells and facts}, and what `--mechanism` found, None if it did not run."""

    found: Mapping[str, Cells]
    mechanism: Mapping[str, Any] | None = None


_LAWS = f"""\
At each refit the laws forecast the mean loss of each domain over the next {WINDOW} steps. *Miss* is the median distance
of what came, by the laws before the refit and by the new ones. *Rank correlation* is that of the improvement that was
forecast with the one that was seen, over domains and refits, and over those domains whose samples rose. The noise of
{WINDOW} steps is part of all of it.
"""


def write_page(path: Path, corpora: Mapping[str, Corpus]) -> None:
    """Writes the page, its pictures and the summaries."""
    parts = [_INTRO.format(names=" ".join(corpora), control=CONTROL, setup=_setup(SIZES["small"]))]
    summaries = []
    for name, corpus in corpora.items():
        found = corpus.found
        tables = {scenario: _without(outcome.table(*cells), SENSITIVITY) for scenario, cells in found.items()}
        for theme in ("light", "dark"):
            draw_planes(tables, path.parent / f"learning_planes_{name}_{theme}.svg", dark=theme == "dark")
        parts += _corpus(name, found, tables)
        parts += _sensitivity(name, corpus)
        if corpus.mechanism and corpus.mechanism["laws"]:
            parts += [f"### {name}: laws and forecasts\n", _LAWS, laws_table(corpus.mechanism["laws"]), ""]
        summaries += [
            _summary_row(name, scenario, rows)
            for scenario, rows in tables.items()
            if any(row["policy"] == "target" for row in rows)
        ]
    path.write_text("\n".join(parts))
    summary = _summary(summaries)
    for other in [*path.parent.glob("*.md"), path.parent.parent / "README.md"]:
        if other != path and other.exists():
            _replace_summary(other, summary, path)


def _corpus(name: str, found: Mapping[str, Cells], tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    clean, facts = next(iter(found.values()))
    tokens = sum(facts["size"].values())
    num_cells = sum(len(policies) for cells, _ in found.values() for policies in cells.values())
    parts = [
        f"## Corpus `{name}`: {len(facts['size'])} domains, {tokens / 1e6:.0f} M tokens\n",
        f"{', '.join(sorted(facts['size'], key=facts['size'].__getitem__, reverse=True))}, largest first. "
        f"{num_cells} runs.\n",
        *([f"{_setup(SIZES[size])}\n"] if (size := name.rpartition("_")[2]) in SIZES else []),
        picture(name),
    ]
    for scenario, rows in tables.items():
        cells, facts = found[scenario]
        parts += [
            f"### {name}, {scenario}: {SCENARIOS[scenario].question}\n",
            outcome.text(rows, wanted=_some_wanted(facts)),
            "",
        ]
        parts += [*findings(scenario, rows, cells, facts), ""]
        rivals = _rivals(cells, facts)
        if rivals:
            parts += ["Rivals less the uniform mixture, which most of them start from or stay near:\n", rivals, ""]
    return parts


def _setup(sizes: Sizes) -> str:
    tokens = sizes.steps * sizes.batch_size * sizes.seq_len
    return (
        f"A transformer of {sizes.num_layers} layers and width {sizes.width} reads {tokens / 1e6:.2f} M tokens: "
        f"{sizes.steps:,} steps of {sizes.batch_size} sequences of {sizes.seq_len} tokens."
    )


def _without(rows: Sequence[Mapping[str, Any]], policies: Sequence[str]) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["policy"] not in policies]


def _sensitivity(name: str, corpus: Corpus) -> list[str]:
    """Each constant of `target` alone: differences to its defaults where it was run, and where nothing can differ."""
    unchanged = (corpus.mechanism or {}).get("unchanged", {})
    parts: list[str] = []
    for scenario, (cells, facts) in corpus.found.items():
        rows = [row for row in outcome.table(cells, facts, baseline="target") if row["policy"] in SENSITIVITY]
        if rows:
            parts += [f"**{scenario}**, less `target` with its defaults:\n", outcome.text(rows, "target"), ""]
            moved = [f"`{row['policy']}`" for row in rows if abs(row["by size"][0]) > (row["by size"][1] or math.inf)]
            parts += [f"Further from the defaults by size than seeds differ: {', '.join(moved) or 'none of these'}.\n"]
        same = unchanged.get(scenario)
        if same and same["settings"]:
            settings = ", ".join(f"`{spec.partition(':')[2]}`" for spec in same["settings"])
            seeds = "one seed" if same["seeds"] == 1 else f"{same['seeds']} seeds"
            parts += [f"**{scenario}**: replayed on the losses of {seeds}, equal mixtures to the bit: {settings}.\n"]
    return [f"### {name}: the constants of `target`\n", *parts] if parts else []


def picture(name: str, folder: str = "") -> str:
    """The planes of the corpus `name`, light or dark as the reader's page is."""
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{folder}learning_planes_{name}_dark.svg">'
        f'<img alt="Loss by size against mean of domains, every policy and scenario, corpus {name}" '
        f'src="{folder}learning_planes_{name}_light.svg"></picture>\n'
    )


def findings(
    scenario: str,
    rows: Sequence[Mapping[str, Any]],
    cells: Mapping[int, Mapping[str, Mapping[str, Any]]],
    facts: Mapping[str, Any],
) -> list[str]:
    """What the rows say, as lines of a Markdown list: of natural's losses, chance, `target`, and what did best."""
    by_policy = {row["policy"]: row for row in rows}
    base = [outcome.measures(seed[BASELINE]["final"], facts) for seed in cells.values() if BASELINE in seed]
    if not base:
        return ["- No run of the natural mixture yet."]
    by_size, mean = (sum(each[measure] for each in base) / len(base) for measure in ("by size", "mean"))
    lines = [f"- natural's own loss is {by_size:.3f} by size, {mean:.3f} in the mean of domains."]
    if CONTROL in by_policy:
        row = by_policy[CONTROL]
        lines.append(
            f"- Chance: other samples of the same mixture move a run by {outcome.cell(row['by size'])} by size and "
            f"{outcome.cell(row['mean'])} in the mean."
        )
    if "target" in by_policy:
        row = by_policy["target"]
        gain = outcome.gain_of_oracle(rows, "target")
        of_oracle = "" if gain is None else f", {gain:.0%} of the oracle's gain"
        lines.append(
            f"- `target` {_verdict(row['by size'])} by size{of_oracle}, and {_verdict(row['mean'])} in the mean."
        )
    if {"uniform", "target:weights=uniform"} <= by_policy.keys():
        row = next(row for row in outcome.table(cells, facts, "uniform") if row["policy"] == "target:weights=uniform")
        found = f"{outcome.cell(row['mean'])} in the mean of domains, {outcome.cell(row['by size'])} by size"
        lines.append(f"- `target:weights=uniform`, less the uniform mixture that it starts from: {found}.")
    if _some_wanted(facts) and {"wanted", "target:wanted"} <= by_policy.keys():
        fixed, target = (outcome.cell(by_policy[policy]["wanted"]) for policy in ("wanted", "target:wanted"))
        lines.append(
            f"- On the wanted domains, the fixed mixture of them ends at {fixed}, `target:wanted` at {target}."
        )
    tried = [row for row in rows if row["policy"] not in (CONTROL, "oracle", BASELINE)]
    for measure, words in (("by size", "by size"), ("mean", "in the mean of domains")):
        if not tried:
            continue
        best = min(tried, key=lambda row: row[measure][0])
        if best[measure][0] >= -LEVEL_NATS:
            lines.append(f"- Nothing that was tried is below natural {words}.")
        elif best["policy"] != "target":
            lines.append(f"- Lowest {words}: `{best['policy']}`, {outcome.cell(best[measure])}.")
    return lines


def _some_wanted(facts: Mapping[str, Any]) -> bool:
    return 0 < len(set(facts["measured"]) & set(facts["wanted"])) < len(facts["measured"])


def _verdict(found: tuple[float, float | None]) -> str:
    mean, half = found
    if abs(mean) < LEVEL_NATS:
        return f"is level with natural ({outcome.cell(found)})"
    sure = "" if half is None or abs(mean) > half else "; the interval holds 0"
    return f"ends {'below' if mean < 0 else 'above'} natural ({outcome.cell(found)}{sure})"


def _rivals(cells: Mapping[int, Mapping[str, Mapping[str, Any]]], facts: Mapping[str, Any]) -> str:
    rows = [row for row in outcome.table(cells, facts, baseline="uniform") if row["policy"] in OTHERS]
    return outcome.text(rows, "uniform") if rows else ""


def _summary_row(name: str, scenario: str, rows: Sequence[Mapping[str, Any]]) -> str:
    by_policy = {row["policy"]: row for row in rows}
    static = min((row for row in rows if row["policy"] in STATIC), key=lambda row: row["mean"][0], default=None)
    cells = [outcome.cell(by_policy[policy]["by size"]) if policy in by_policy else "" for policy in ("target", "ado")]
    cells += [outcome.cell(by_policy[policy]["mean"]) if policy in by_policy else "" for policy in ("target", "ado")]
    gain = outcome.gain_of_oracle(rows, "target")
    cells += ["" if gain is None else f"{gain:.0%}"]
    cells += ["" if static is None else f"{static['policy']} {outcome.cell(static['mean'])}"]
    return f"| {name}, {scenario} | {by_policy['target']['seeds']} | " + " | ".join(cells) + " |"


def _summary(rows: Sequence[str]) -> str:
    header = (
        "| corpus and scenario | seeds | target, by size | ado, by size | target, mean | ado, mean "
        "| target's gain over the oracle's | lowest static mean |"
    )
    return "\n".join([header, "|---|---|---|---|---|---|---|---|", *rows])


def _replace_summary(path: Path, summary: str, page: Path) -> None:
    text = path.read_text()
    before, begin, rest = text.partition(SUMMARY_BEGIN + "\n")
    _, end, after = rest.partition(SUMMARY_END)
    if begin and end:
        folder = "" if path.parent == page.parent else f"{page.parent.name}/"
        link = f"\nAll tables and pictures: [{page.stem}]({folder}{page.name}).\n"
        path.write_text(f"{before}{begin}{summary}\n{link}{end}{after}")

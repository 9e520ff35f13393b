"""What does a policy do to a model: where does adaptive mixing help, where not, and how sure is that?

    python -m benchmarks learning --out RUNS                                  a part of it, in about ten minutes
    python -m benchmarks learning --out RUNS --full --workers 2               all of it: some six hours of one core
    python -m benchmarks learning --out RUNS --scenario clean --seed 3 --policy target     one cell again

Prints a Markdown table per scenario of differences to the natural mixture, paired by seed, with 95 % intervals; draws
the plane of loss by size against mean of domains; writes benchmarks/results/learning_NAME.json. Each cell is a file
under RUNS and is not run again while it is there, so a stopped benchmark goes on. --text and --val name corpora in The
Pile's format; without them the text is the Python environment's. The bars: `target` within 0.005 nats of natural on
clean text, and 90 % of the oracle's gain where there is text that cannot be learnt.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.common import bar, write_result
from benchmarks.learning import outcome
from benchmarks.learning.scenarios import SCENARIOS

HARM_NATS, GAIN_FRAC = 0.005, 0.9
FULL_SEEDS = {"clean": 5}
QUICK = ("clean", "unlearnable-40")
QUICK_POLICIES = ("natural", "ado", "target", "oracle")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for corpora and cells")
    parser.add_argument("--name", default="python", help="what to call the corpus")
    parser.add_argument("--text", nargs="+", default=[], help="training text, .jsonl or .jsonl.zst")
    parser.add_argument("--val", nargs="+", default=[], help="validation text")
    parser.add_argument("--full", action="store_true", help="every scenario, policy and seed")
    parser.add_argument("--scenario", nargs="+", choices=SCENARIOS, help="only these")
    parser.add_argument("--policy", nargs="+", help="only these")
    parser.add_argument("--seed", nargs="+", type=int, help="only these")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="trials at once")
    args = parser.parse_args()
    from benchmarks.learning.corpora import SEQ_LEN, make_corpus
    from benchmarks.learning.trial import Sizes

    sizes = Sizes(steps=args.steps)
    folder = args.out / args.name
    samples = sizes.steps * sizes.batch_size // 10  # that a fifth of a run's tenth reads
    corpus = make_corpus(folder, args.text, args.val, exhausted_tokens=samples * SEQ_LEN // 5)
    trials = [(name, seed) for name in _scenarios(args) for seed in _seeds(args, name)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, context, initializer=_quiet) as pool:
        policies = args.policy or (None if args.full else QUICK_POLICIES)
        jobs = [pool.submit(run_trial, corpus, folder, name, seed, sizes, policies) for name, seed in trials]
        for job in jobs:
            job.result()
    report(folder, args.name)


def run_trial(corpus: Path, folder: Path, name: str, seed: int, sizes: Any, policies: Sequence[str] | None) -> None:
    """Runs the cells of one scenario's seed that are not there yet; each becomes a file."""
    import torch

    from benchmarks.learning.trial import Trial

    torch.set_num_threads(1)
    scenario = SCENARIOS[name]
    wanted = [*scenario.policies, *(["oracle"] if scenario.made else [])]
    wanted = [policy for policy in wanted if policies is None or policy in policies]
    wanted += [policy for policy in policies or () if policy not in wanted and ":" in policy]
    home = folder / name / str(seed)
    missing = [policy for policy in wanted if not (home / f"{policy}.json").exists()]
    if not missing:
        return
    home.mkdir(parents=True, exist_ok=True)
    trial = Trial(corpus, scenario, seed, sizes)
    for policy in missing:
        started = time.process_time()
        cell = {**trial.branch(policy), "seed": seed, "cpu_s": time.process_time() - started}
        temporary = home / f".{policy}.tmp"
        temporary.write_text(json.dumps({"facts": trial.facts(), **cell}))
        temporary.replace(home / f"{policy}.json")
        print(f"{name} seed {seed} {policy}: {cell['cpu_s']:.0f} s", file=sys.stderr, flush=True)


def report(folder: Path, corpus: str) -> None:
    """Prints tables and bars of every cell under `folder`, draws, and writes the result."""
    from benchmarks.learning.picture import draw_planes

    found: dict[str, list[dict[str, Any]]] = {}
    for name, scenario in SCENARIOS.items():
        cells, facts = read_cells(folder / name)
        if not cells:
            continue
        found[name] = outcome.table(cells, facts)
        print(outcome.text(name, scenario.question, found[name]) + "\n")
    write_result(f"learning_{corpus}", {"scenarios": found}, bars(found))
    draw_planes(found, folder / "planes.svg")


def read_cells(home: Path) -> tuple[dict[int, dict[str, Any]], dict[str, Any]]:
    """({seed: {policy: cell}}, the trial's facts) of one scenario's folder."""
    cells: dict[int, dict[str, Any]] = {}
    facts: dict[str, Any] = {}
    for path in sorted(home.glob("*/*.json")):
        cell = json.loads(path.read_text())
        facts = cell["facts"]
        cells.setdefault(cell["seed"], {})[cell["policy"]] = cell
    return cells, facts


def bars(found: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What was promised of `target`, as far as the cells are there."""
    held = []
    for name, rows in found.items():
        row = next((row for row in rows if row["policy"] == "target"), None)
        if row is None:
            continue
        if name == "clean":
            held.append(bar("clean: target above natural by size, nats", row["by size"][0], HARM_NATS))
        gain = outcome.gain_of_oracle(rows, "target")
        if gain is not None:
            held.append(bar(f"{name}: target's gain over the oracle's", gain, GAIN_FRAC, at_least=True))
    return held


def _scenarios(args: argparse.Namespace) -> list[str]:
    return args.scenario or list(SCENARIOS if args.full else QUICK)


def _seeds(args: argparse.Namespace, name: str) -> list[int]:
    return args.seed or list(range(1, 1 + (FULL_SEEDS.get(name, 3) if args.full else 1)))


def _quiet() -> None:
    warnings.simplefilter("ignore")


if __name__ == "__main__":
    main()

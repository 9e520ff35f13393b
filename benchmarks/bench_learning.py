"""What does a policy do to a model: where does adaptive mixing help, where not, and how sure is that?

    python -m benchmarks learning --out RUNS                                  a part of it, in about ten minutes
    python -m benchmarks learning --out RUNS --full --workers 2               all of it: some six hours of one core
    python -m benchmarks learning --out RUNS --scenario clean --seed 3 --policy target     one cell again
    python -m benchmarks learning --out RUNS --size medium          a larger model: some ten times the work a cell
    python -m benchmarks learning --out RUNS --size 124m --minutes 9          2.5 B tokens a cell on a card, in parts
    python -m benchmarks learning --out RUNS --mechanism            laws, forecasts and settings, checked on the cells
    python -m benchmarks learning --out RUNS --name ten python --docs docs/learning.md     the page, from cells alone

Prints a Markdown table per scenario of differences to the natural mixture, paired by seed, with 95 % intervals; draws
the plane of loss by size against mean of domains; writes benchmarks/results/learning_NAME.json, on a card with size,
card and date in its name. Each cell is a file under RUNS and is not run again while it is there, so a stopped benchmark
goes on; with --minutes it stops by itself, in the middle of a cell if need be, and the same command goes on from that
step. --text and --val name corpora in The Pile's format; without them the text is the Python environment's. The bars:
`target` within 0.005 nats of natural on clean text, and 90 % of the oracle's gain where there is text that cannot be
learnt.
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
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import QUICK, RESULTS, bar, machine, size, write_result
from benchmarks.learning import outcome
from benchmarks.learning.scenarios import SCENARIOS, SIZES

HARM_NATS, GAIN_FRAC = 0.005, 0.9
FULL_SEEDS = {"clean": 5}
_MECHANISM = "mechanism.json"
PART = ("clean", "unlearnable-40")
PART_POLICIES = ("natural", "ado", "target", "oracle")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    out = {"default": RESULTS / "learning"} if QUICK else {"required": True}
    parser.add_argument("--out", type=Path, **out, help="folder for corpora and cells")
    parser.add_argument("--name", nargs="+", default=["python"], help="what to call the corpus; several with --docs")
    parser.add_argument("--text", nargs="+", default=[], help="training text, .jsonl or .jsonl.zst")
    parser.add_argument("--val", nargs="+", default=[], help="validation text")
    parser.add_argument("--full", action="store_true", help="every scenario, policy and seed")
    parser.add_argument("--scenario", nargs="+", choices=SCENARIOS, help="only these")
    parser.add_argument("--policy", nargs="+", help="only these")
    parser.add_argument("--seed", nargs="+", type=int, help="only these")
    parser.add_argument("--size", choices=SIZES, default="small", help="of the model and the run")
    parser.add_argument("--steps", type=int, help="steps of a run (1200; 124m: 9537, 2.5 B tokens)")
    parser.add_argument("--minutes", type=float, help="stop after so many; the same command goes on")
    parser.add_argument("--workers", type=int, help="trials at once (one a core; on a card: one)")
    parser.add_argument("--mechanism", action="store_true", help="check laws and settings on the cells; train nothing")
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="write the page from the cells; run nothing")
    args = parser.parse_args()
    if SIZES[args.size].device == "cuda" and not (args.docs or args.mechanism or _has_card()):
        parser.error(f"--size {args.size}: no CUDA GPU here; --size small and medium run on a CPU")
    if args.docs:
        from benchmarks.learning.page import Corpus, write_page

        write_page(
            args.docs, {name: Corpus(read_corpus(args.out / name), _mechanism(args.out / name)) for name in args.name}
        )
        return
    if len(args.name) > 1:
        parser.error("--name: several corpora make one page with --docs; run them one by one.")
    if args.mechanism:
        check_mechanism(args)
    elif run_cells(args, time.time()):
        report(args.out / _folder(args), _folder(args), on_card=SIZES[args.size].device != "cpu")
    else:
        print(f"stopped after {args.minutes:g} minutes; the same command goes on from there.")


def run_cells(args: argparse.Namespace, started: float) -> bool:
    """Runs the cells that are missing; False when the time was over before all were there."""
    from benchmarks.learning.corpora import make_corpus

    sizes = SIZES[args.size]
    sizes = replace(sizes, steps=args.steps or sizes.steps)
    folder = args.out / _folder(args)
    corpus = make_corpus(folder, args.text, args.val, sizes)
    trials = [(name, seed) for name in _scenarios(args) for seed in _seeds(args, name)]
    policies = args.policy or (None if args.full else PART_POLICIES)
    deadline = None if args.minutes is None else started + 60.0 * args.minutes
    workers = args.workers or (len(os.sched_getaffinity(0)) if sizes.device == "cpu" else 1)
    with ProcessPoolExecutor(workers, multiprocessing.get_context(size("spawn", "fork")), initializer=_quiet) as pool:
        jobs = [pool.submit(run_trial, corpus, folder, name, seed, sizes, policies, deadline) for name, seed in trials]
        finished = [job.result() for job in jobs]
    return all(finished)


def run_trial(
    corpus: Path,
    folder: Path,
    name: str,
    seed: int,
    sizes: Any,
    policies: Sequence[str] | None,
    deadline: float | None = None,
) -> bool:
    """Runs the cells of one scenario's seed that are not there yet; each becomes a file. False when out of time."""
    import torch

    from benchmarks.learning.trial import OutOfTime, Trial

    torch.set_num_threads(1)
    scenario = SCENARIOS[name]
    wanted = [*scenario.policies, *(["oracle"] if scenario.made else [])]
    wanted = [policy for policy in wanted if policies is None or policy in policies]
    wanted += [policy for policy in policies or () if policy not in wanted and ":" in policy]
    home = folder / name / str(seed)
    missing = [policy for policy in wanted if not (home / f"{policy}.json").exists()]
    if not missing:
        return True
    if deadline is not None and time.time() > deadline:
        return False
    home.mkdir(parents=True, exist_ok=True)
    trial = Trial(corpus, scenario, seed, sizes, home, deadline)
    for policy in missing:
        started = time.process_time()
        try:
            cell = {**trial.branch(policy), "seed": seed, "cpu_s": time.process_time() - started}
        except OutOfTime as stopped:
            print(f"{name} seed {seed} {stopped}", file=sys.stderr, flush=True)
            return False
        temporary = home / f".{policy}.tmp"
        temporary.write_text(json.dumps({"facts": trial.facts(), **cell}))
        temporary.replace(home / f"{policy}.json")
        print(f"{name} seed {seed} {policy}: {cell['cpu_s']:.0f} s", file=sys.stderr, flush=True)
    return True


def report(folder: Path, corpus: str, on_card: bool) -> None:
    """Prints tables and bars of every cell under `folder`, draws, and writes the result."""
    from benchmarks.learning.picture import draw_planes

    found = {name: outcome.table(cells, facts) for name, (cells, facts) in read_corpus(folder).items()}
    for name, rows in found.items():
        print(f"### {name}: {SCENARIOS[name].question}\n\n{outcome.text(rows)}\n")
    about = machine()
    where = f"_{about['card'].replace(' ', '-')}_{about['date']}" if on_card else ""
    write_result(f"learning_{corpus}{where}", {"scenarios": found}, bars(found))
    draw_planes(found, folder / "planes.svg")


def check_mechanism(args: argparse.Namespace) -> None:
    """Replays the cells that are there; prints what laws and settings were worth, and writes it beside the corpus."""
    from benchmarks.learning.mechanism import check_corpus, laws_table
    from benchmarks.learning.trial import Trial

    folder = args.out / _folder(args)
    sizes = replace(SIZES[args.size], steps=args.steps or SIZES[args.size].steps)
    found = check_corpus(
        (name, Trial(folder / "corpus", SCENARIOS[name], seed, sizes, folder / name / str(seed)), policies)
        for name, (cells, _) in read_corpus(folder).items()
        for seed, policies in cells.items()
        if (not args.scenario or name in args.scenario) and (not args.seed or seed in args.seed)
    )
    print(laws_table(found["laws"]))
    for name, same in found["unchanged"].items():
        settings = ", ".join(same["settings"]) or "none"
        print(f"{name}, {same['seeds']} seeds: equal runs, to the bit, with each of: {settings}")
    (folder / _MECHANISM).write_text(json.dumps(found, indent=1))


def _mechanism(folder: Path) -> Any:
    return json.loads((folder / _MECHANISM).read_text()) if (folder / _MECHANISM).exists() else None


def read_corpus(folder: Path) -> dict[str, tuple[dict[int, dict[str, Any]], dict[str, Any]]]:
    """{scenario: ({seed: {policy: cell}}, the trial's facts)} of every cell under `folder`."""
    found = {}
    for name in SCENARIOS:
        cells: dict[int, dict[str, Any]] = {}
        facts: dict[str, Any] = {}
        for path in sorted((folder / name).glob("*/*.json")):
            cell = json.loads(path.read_text())
            facts = cell["facts"]
            cells.setdefault(cell["seed"], {})[cell["policy"]] = cell
        if cells:
            found[name] = cells, facts
    return found


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


def _has_card() -> bool:
    import torch

    return torch.cuda.is_available()


def _folder(args: argparse.Namespace) -> str:
    """The corpus's folder: each size has a tokenizer and a sequence length of its own."""
    return args.name[0] if args.size == "small" else f"{args.name[0]}_{args.size}"


def _scenarios(args: argparse.Namespace) -> list[str]:
    return args.scenario or list(SCENARIOS if args.full else PART)


def _seeds(args: argparse.Namespace, name: str) -> list[int]:
    return args.seed or list(range(1, 1 + (FULL_SEEDS.get(name, 3) if args.full else 1)))


def _quiet() -> None:
    warnings.simplefilter("ignore")


if __name__ == "__main__":
    main()

"""What does a policy do to a model? Validation losses on real text, policy against policy, seed by seed.

    python -m benchmarks learning --corpus corpus --out runs/learning --policies natural ado ado:credit_power=0

Trains one model per policy and seed on a prepared corpus (`ado-stream prepare`), everything else alike, and compares
with the natural mixture: by corpus size and as a mean of domains, every domain, and each seed beside the other, which
is the noise. Options of a policy follow its name. Runs go on where they were stopped; `ado-stream report RUN...` draws
them. No bar.
"""

import argparse
from pathlib import Path
from typing import Any

import yaml

from ado_stream.report.run_data import load_runs
from ado_stream.report.validation_plot import OVERALL, final_losses
from ado_stream.train.config import load_config
from ado_stream.train.trainer import run_training
from benchmarks.common import write_result

BASELINE = "natural"


def config_of(args: argparse.Namespace, policy: str, seed: int) -> dict[str, Any]:
    """A run's config; the runs differ in policy and seed alone."""
    name, _, options = policy.partition(":")
    return {
        "corpus": args.corpus,
        "run_dir": str(args.out / f"{policy}-{seed}"),
        "seed": seed,
        "model": {"preset": args.preset},
        "data": {"global_batch_size": args.batch_size},
        "policy": {"name": name, "options": {key: yaml.safe_load(value) for key, value in _pairs(options)}},
        "train": {"steps": args.steps, "micro_batch_size": args.micro_batch_size},
        "checkpoint": {"every_steps": max(args.steps // 10, 1), "keep": 1},
        "evaluate": {"every_steps": max(args.steps // 10, 1), "max_samples_per_domain": args.val_samples},
        "log": {"every_steps": max(args.steps // 40, 1)},
    }


def _pairs(options: str) -> list[list[str]]:
    return [pair.split("=", 1) for pair in options.split(",") if pair]


def outcome(run_dir: Path) -> dict[str, Any]:
    """Final validation losses in nats per token, and how often each domain's text was read."""
    run = load_runs([run_dir])[0]
    samples_K = run.samples_SK.sum(axis=0)
    losses = final_losses(run)
    sizes = [run.metadata["corpus"]["domains"][name]["samples"] for name in run.domains]
    epochs = {name: drawn / size for name, drawn, size in zip(run.domains, samples_K.tolist(), sizes, strict=True)}
    return {
        **{measure: losses.pop(measure) for measure in OVERALL},
        "domains": losses,
        "share": dict(zip(run.domains, (samples_K / samples_K.sum()).tolist(), strict=True)),
        "epochs": epochs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", required=True, help="a prepared corpus with a val split")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--policies", nargs="+", default=["ado", BASELINE])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--micro-batch-size", type=int, default=8)
    parser.add_argument("--val-samples", type=int, default=128, help="of each domain")
    args = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    for seed in args.seeds:
        for policy in args.policies:
            run = run_training(load_config(config_of(args, policy, seed)))
            if run.stopped:
                return
            found[run.run_dir.name] = outcome(run.run_dir)
            settings = {key: str(value) for key, value in vars(args).items() if key not in ("corpus", "out")}
            write_result("learning", {"settings": settings, "runs": found, "against": against(found)})


def against(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """{run: its losses less those of the natural mixture with the same seed}, in nats; negative is better."""
    differences = {}
    for name, own in found.items():
        policy, _, seed = name.rpartition("-")
        base = found.get(f"{BASELINE}-{seed}")
        if base is None or policy == BASELINE:
            continue
        differences[name] = {
            **{measure: own[measure] - base[measure] for measure in OVERALL},
            "domains": {domain: loss - base["domains"][domain] for domain, loss in own["domains"].items()},
        }
    return differences


if __name__ == "__main__":
    main()

"""Train a model on a prepared corpus from a config file, on one process or on every rank of torchrun."""

import argparse
from pathlib import Path

from ado_stream.cli.shared import is_main_rank
from ado_stream.visible import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "config",
        metavar="CONFIG.yaml",
        help="keys: see ado_stream/train/run_config.py; corpus and run_dir are required",
    )
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="override settings of the file: train.steps=300")
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|none|PATH",
        help="auto (default): the newest complete checkpoint, if any; none: start again; PATH: this checkpoint",
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the plan, train nothing")


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    from ado_stream.train.cpu_tuning import let_idle_threads_sleep
    from ado_stream.train.run_config import load_config

    let_idle_threads_sleep()
    config = load_config(Path(args.config), args.overrides)
    if is_main_rank():  # before torch is imported, which takes seconds
        stages = f" in {len(config.stages)} stages" if config.stages else ""
        show(f"{config.run_dir}: policy {config.policy.name}, {config.train.steps:,} steps{stages} on {config.corpus}")
    if args.dry_run:
        from ado_stream.train.distributed import detect_context
        from ado_stream.train.dry_run import plan_run

        context = detect_context(config.train.device)
        plan = plan_run(config, context)
        if context.is_main:
            show(plan)
        return
    from ado_stream.train.trainer import run_training

    result = run_training(config, args.resume)
    if is_main_rank():
        state = "stopped; the same command resumes it" if result.stopped else "done"
        show(f"{state}: step {result.step}, {result.run_dir}")

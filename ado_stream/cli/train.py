"""Train a model on a prepared corpus, as a config file says; alone, or on every rank that torchrun starts."""

import argparse
import os
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "config", metavar="CONFIG.yaml", help="keys: ado_stream/train/config.py; two must be given: corpus, run_dir"
    )
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="settings over the file's: train.steps=300")
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|none|PATH",
        help="auto (default): from the newest complete checkpoint, if any; none: anew; PATH: from this checkpoint",
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the plan, train nothing")


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from ado_stream.train.config import load_config
    from ado_stream.train.cpu_tuning import let_idle_threads_sleep

    let_idle_threads_sleep()
    config = load_config(Path(args.config), args.overrides)
    if args.dry_run:
        from ado_stream.train.distributed import detect_context
        from ado_stream.train.dry_run import plan_run, plan_text

        context = detect_context(config.train.device)
        plan = plan_run(config, context)
        if context.is_main:
            print(plan_text(plan))
        return 0
    from ado_stream.train.trainer import run_training

    result = run_training(config, args.resume)
    if os.environ.get("RANK", "0") == "0":
        state = "stopped; the same command goes on" if result.stopped else "done"
        print(f"{state}: step {result.step}, {result.run_dir}")
    return 0

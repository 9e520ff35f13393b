"""Validation loss of a run's model per domain, and downstream tasks on request."""

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ado_stream.cli.shared import add_trained_run_argument, announce, is_main_rank, table_text
from ado_stream.errors import ConfigError
from ado_stream.option_checks import optional, whole
from ado_stream.value_types import JsonObject
from ado_stream.visible import show, show_json

if TYPE_CHECKING:
    from ado_stream.evaluate.trained_run import TrainedRun


ONLY_WITH = {"--tasks": ("--task-dir",)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    add_trained_run_argument(parser)
    parser.add_argument("--corpus", metavar="C", help="another corpus with the same tokenizer (default: the run's)")
    parser.add_argument("--max-samples", type=int, metavar="N", help="samples of each domain (default: all)")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="tasks of lm-evaluation-harness, such as hellaswag")
    parser.add_argument("--task-dir", metavar="DIR", help="folder of additional task files")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="sequences per batch (8)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    from ado_stream.train.cpu_tuning import let_idle_threads_sleep

    let_idle_threads_sleep()
    announce(f"evaluating {args.run}")
    _check(args)
    from ado_stream.evaluate.trained_run import open_run

    trained = open_run(args.run)
    found: JsonObject = {"step": trained.step}
    if not args.tasks or args.corpus or trained.open_corpus("train").has("val"):  # tasks need no validation text
        found["validation"] = _validate(trained, args)
    if args.tasks:
        found["tasks"] = _tasks(trained, args)
    if is_main_rank():
        (show_json if args.json else _print)(found)


def _check(args: argparse.Namespace) -> None:
    """Raises ConfigError for an option that cannot work, before anything is opened."""
    from ado_stream.train.distributed import pick_device

    whole("--batch-size", args.batch_size, 1)
    optional(whole, "--max-samples", args.max_samples, 1)
    if args.task_dir is not None and not Path(args.task_dir).is_dir():
        raise ConfigError(f"--task-dir {args.task_dir}: no such folder.")
    pick_device(args.device)


def _validate(trained: "TrainedRun", args: argparse.Namespace) -> JsonObject:
    from ado_stream.train.cpu_tuning import keep_freed_memory
    from ado_stream.train.distributed import join_process_group
    from ado_stream.train.run_config import DataSection
    from ado_stream.train.validation import Validator

    corpus = trained.open_corpus("val", args.corpus)
    names = [domain.name for domain in corpus.domains]
    data = DataSection() if args.corpus else trained.config.data
    with join_process_group(args.device) as context:
        keep_freed_memory()
        model = trained.model.to(context.device)
        validator = Validator(
            corpus,
            names,
            args.max_samples,
            context,
            args.batch_size,
            token_column=data.token_column,
            token_dtype=data.token_dtype,
        )
        validation = validator(model.loss)
    assert validation is not None, "no stop was requested"
    columns = zip(names, validation.domain_loss_K, validation.bits_per_byte_K, validation.domain_tokens_K, strict=True)
    return {
        "loss": validation.loss,
        "domain_average": validation.domain_average,
        "domains": {
            name: {"loss": float(loss), "bits_per_byte": float(bits), "tokens": int(tokens)}
            for name, loss, bits, tokens in columns
        },
    }


def _tasks(trained: "TrainedRun", args: argparse.Namespace) -> JsonObject:
    from ado_stream.evaluate.model_export import export_hugging_face
    from ado_stream.evaluate.tasks import evaluate_tasks
    from ado_stream.train.distributed import pick_device

    tokenizer = trained.open_corpus("train").tokenizer
    with tempfile.TemporaryDirectory() as folder:
        exported = export_hugging_face(trained.model.cpu(), Path(folder) / "model", tokenizer)
        return evaluate_tasks(exported, args.tasks, args.task_dir, str(pick_device(args.device)), args.batch_size)


def _print(found: JsonObject) -> None:
    show(f"step {found['step']}")
    if "validation" in found:
        _print_validation(found["validation"])
    for task, metrics in found.get("tasks", {}).items():
        for metric, value in metrics.items():
            if isinstance(value, float):
                show(f"{task:<24} {metric:<24} {value:.4f}")


def _print_validation(validation: JsonObject) -> None:
    rows = [
        [name, f"{each['tokens']:,}", f"{each['loss']:.4f}", f"{each['bits_per_byte']:.4f}"]
        for name, each in validation["domains"].items()
    ]
    rows.append(["all tokens", "", f"{validation['loss']:.4f}", ""])
    rows.append(["mean of domains", "", f"{validation['domain_average']:.4f}", ""])
    show(table_text(("domain", "tokens", "nats/token", "bits/byte"), rows))

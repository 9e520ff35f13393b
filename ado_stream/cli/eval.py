"""Validation loss of a run's model per domain, and downstream tasks when asked."""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("run", metavar="RUN", help="run_dir of a training run; its newest complete checkpoint is taken")
    parser.add_argument("--corpus", metavar="C", help="another prepared corpus with the same tokenizer (the run's own)")
    parser.add_argument("--max-samples", type=int, metavar="N", help="of each domain (all)")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="tasks of lm-evaluation-harness, such as hellaswag")
    parser.add_argument("--task-dir", metavar="DIR", help="a folder of further task files")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    from ado_stream.train.host import let_idle_threads_sleep

    let_idle_threads_sleep()
    from ado_stream.evaluate.trained import open_run

    trained = open_run(args.run)
    found: dict[str, Any] = {"step": trained.step, "validation": _validate(trained, args)}
    if args.tasks:
        found["tasks"] = _tasks(trained, args)
    if args.json:
        print(json.dumps(found))
    else:
        _print(found)


def _validate(trained: Any, args: argparse.Namespace) -> dict[str, Any]:
    import dataclasses

    from ado_stream.errors import ConfigError
    from ado_stream.evaluate.validation import Validator
    from ado_stream.train.assemble import open_split
    from ado_stream.train.distributed import join_world
    from ado_stream.train.host import keep_freed_memory

    config = dataclasses.replace(trained.config, corpus=args.corpus or trained.config.corpus)
    corpus = open_split(config, "val")
    sizes = trained.model.config
    if corpus.tokenizer.vocab_size > sizes.vocab_size or corpus.seq_len > sizes.context_length:
        raise ConfigError(
            f"{config.corpus}: vocabulary {corpus.tokenizer.vocab_size}, sequences of {corpus.seq_len}; the model has "
            f"{sizes.vocab_size} and {sizes.context_length}. Prepare it with the run's tokenizer and --seq-len."
        )
    names = [domain.name for domain in corpus.domains]
    with join_world(args.device) as world:
        keep_freed_memory()
        model = trained.model.to(world.device)
        validation = Validator(corpus, names, args.max_samples, world, batch_rows=8)(model.loss)
    columns = zip(names, validation.domain_loss_K, validation.bits_per_byte_K, validation.domain_tokens_K, strict=True)
    return {
        "loss": validation.loss,
        "domain_average": validation.domain_average,
        "domains": {
            name: {"loss": float(loss), "bits_per_byte": float(bits), "tokens": int(tokens)}
            for name, loss, bits, tokens in columns
        },
    }


def _tasks(trained: Any, args: argparse.Namespace) -> dict[str, Any]:
    from ado_stream.evaluate.export import export_hugging_face
    from ado_stream.evaluate.tasks import evaluate_tasks
    from ado_stream.train.assemble import open_split

    tokenizer = open_split(trained.config, "train").tokenizer
    with tempfile.TemporaryDirectory() as folder:
        exported = export_hugging_face(trained.model.cpu(), Path(folder) / "model", tokenizer)
        return evaluate_tasks(exported, args.tasks, args.task_dir, "cpu" if args.device == "auto" else args.device)


def _print(found: dict[str, Any]) -> None:
    validation = found["validation"]
    print(f"step {found['step']}\n{'domain':<24} {'tokens':>10} {'nats/token':>11} {'bits/byte':>10}")
    for name, each in validation["domains"].items():
        print(f"{name:<24} {each['tokens']:>10,} {each['loss']:>11.4f} {each['bits_per_byte']:>10.4f}")
    print(
        f"{'all tokens':<35} {validation['loss']:>11.4f}\n{'mean of domains':<35} {validation['domain_average']:>11.4f}"
    )
    for task, metrics in found.get("tasks", {}).items():
        for metric, value in metrics.items():
            if isinstance(value, float):
                print(f"{task:<24} {metric:<24} {value:.4f}")

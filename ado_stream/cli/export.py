"""Write a run's model as a Hugging Face checkpoint: config, safetensors, tokenizer."""

import argparse
from pathlib import Path

from ado_stream.cli.shared import add_trained_run_argument, announce
from ado_stream.visible import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    add_trained_run_argument(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="a new folder")
    parser.add_argument(
        "--dtype", default="float32", metavar="T", help="of the parameters: float32 (default), bfloat16"
    )


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    announce(f"exporting {args.run}")
    from ado_stream.evaluate.model_export import export_hugging_face
    from ado_stream.evaluate.trained_run import open_run

    trained = open_run(args.run)
    tokenizer = trained.open_corpus("train").tokenizer
    show(f"step {trained.step}: {export_hugging_face(trained.model, Path(args.out), tokenizer, args.dtype)}")

"""Give orders to a running job, or list those given; they take effect before its next step."""

import argparse
from pathlib import Path

from ado_stream.cli.shared import table_text
from ado_stream.visible import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("run", metavar="RUN", help="run_dir of the run")
    parser.add_argument(
        "order",
        nargs="*",
        metavar="ORDER",
        help="pin code=0.2 | bound code=0.05:0.3 | freeze (the mixture) | release [DOMAIN ...] | policy natural (or "
        "uniform, or the run's own); none: list the orders given",
    )
    parser.add_argument("--wait", type=float, default=60.0, metavar="S", help="seconds to wait for the answer (60)")


def run(args: argparse.Namespace) -> None:
    """Checks the order, writes it into the run's folder, waits for the answer."""
    from ado_stream.errors import ConfigError, StorageError
    from ado_stream.policy.operator_control import parse_order
    from ado_stream.record import read_run
    from ado_stream.train.run_control import submit, wait_for_answer

    run_dir = Path(args.run)
    about, lines = read_run(run_dir)
    if not args.order:
        show(_listed(run_dir))
        return
    parse_order(args.order, about["domains"])
    last = lines["event"][-1] if lines["event"] else {}
    ended = last.get("name") in ("done", "stop") and last["step"]
    if ended and last["name"] == "done":
        raise ConfigError(f"{run_dir} has ended at step {ended:,}; to go on with it, train with more train.steps.")
    path = submit(run_dir, args.order)
    if ended:
        show(f"{run_dir} is stopped at step {ended:,}; it takes the order when it is resumed: {path}")
        return
    answer = wait_for_answer(path, args.wait)
    if answer is None:
        raise StorageError(
            f"{run_dir}: no answer within {args.wait:g} s; is it running? The order is taken when it runs again.\n"
            f"  To withdraw it, remove {path}."
        )
    if "refused" in answer:
        raise ConfigError(f"refused: {answer['refused']}")
    show(f"in force; drawn from step {answer['drawn_from']:,} on")


def _listed(run_dir: Path) -> str:
    from ado_stream.train.run_control import list_orders, read_answer, read_words

    rows = []
    for path in list_orders(run_dir):
        answer = read_answer(path)
        if answer is None:
            state = "waits for the run"
        else:
            state = f"drawn from step {answer['drawn_from']:,}" if "step" in answer else f"refused: {answer['refused']}"
        rows.append((" ".join(read_words(path)), state))
    return table_text(("order", "answer"), rows) if rows else f"{run_dir}: no orders were given"

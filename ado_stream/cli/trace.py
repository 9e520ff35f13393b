"""Show what a recorded step was made of: every sample's domain, documents, loss and text; or find steps that stood out.

A step is drawn again from the record: the samples are those it trained on. --spikes lists the steps whose loss lay far
above those before it, in total or of a domain, by medians of the record (ado_stream/report/loss_spikes.py).
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ado_stream.cli.shared import announce, load_one_run, show_sample, table_text
from ado_stream.option_checks import optional, positive, whole
from ado_stream.value_types import JsonObject
from ado_stream.visible import show, show_json

if TYPE_CHECKING:
    from ado_stream.evaluate.recorded_step import RecordedSample


ONLY_WITH = {"--spikes": ("--window", "--threshold"), "--step": ("--rank", "--highest", "--characters")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("run", metavar="RUN", help="a run directory")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--step", type=int, metavar="N", help="the samples of step N")
    what.add_argument("--spikes", action="store_true", help="the steps whose loss stood out, in total and by domain")
    parser.add_argument("--rank", type=int, metavar="R", help="only the samples that rank R read")
    parser.add_argument(
        "--highest", type=int, metavar="N", help="only the N highest losses that log.sample_losses kept"
    )
    parser.add_argument("--characters", type=int, default=300, metavar="N", help="of each sample; 0 for all (300)")
    parser.add_argument("--window", type=int, default=64, metavar="N", help="spikes: losses to compare with (64)")
    parser.add_argument("--threshold", type=float, default=6.0, metavar="Z", help="spikes: robust deviations (6)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per sample or spike")


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    optional(whole, "--rank", args.rank)
    optional(whole, "--highest", args.highest, 1)
    whole("--characters", args.characters)
    whole("--window", args.window, 2)
    positive("--threshold", args.threshold)
    if args.spikes:
        _show_spikes(args)
    else:
        show_step(args.run, args.step, args.characters, args.json, args.rank, args.highest)


def show_step(
    run: str, step: int, characters: int, as_json: bool, rank: int | None = None, highest: int | None = None
) -> None:
    """Prints the samples of a recorded step: all, those of `rank`, or the `highest` losses."""
    announce(f"drawing step {step:,} of {run} again")
    from ado_stream.evaluate.recorded_step import Wanted, open_step  # imports torch

    corpus, samples = open_step(Path(run), Wanted(step, rank, highest))
    for sample in samples:
        text = corpus.tokenizer.decode(sample.tokens)
        if as_json:
            show_json({"step": step, **_fields(sample)}, text=text)
            continue
        show_sample(_title(step, sample), text, characters)


def _fields(sample: "RecordedSample") -> JsonObject:
    return {
        "slot": sample.slot,
        "rank": sample.rank,
        "domain": sample.domain,
        "sample": sample.number,
        "documents": None if sample.documents is None else sample.documents._asdict(),
        "loss": sample.loss,
    }


def _title(step: int, sample: "RecordedSample") -> str:
    parts = [f"step {step}", f"slot {sample.slot}", sample.domain, f"sample {sample.number}"]
    if sample.documents is not None:
        first, last, file = sample.documents
        parts.append(
            f"document{f's {first} to {last}' if last > first else f' {first}'}{f' of {file}' if file else ''}"
        )
    if sample.rank is not None:
        parts.append(f"rank {sample.rank}")
    if sample.loss is not None:
        parts.append(f"loss {sample.loss:.4f}")
    return f"{', '.join(parts)}, {len(sample.tokens)} tokens"


def _show_spikes(args: argparse.Namespace) -> None:
    from ado_stream.report.loss_spikes import find_spikes

    recorded = load_one_run(args.run)
    spikes = find_spikes(recorded, args.window, args.threshold)
    if args.json:
        for spike in spikes:
            show_json(asdict(spike))
        return
    if not spikes:
        show(f"none of {recorded.step_S.size:,} steps stood out by {args.threshold:g} robust deviations")
        return
    rows = [
        [str(each.step), each.domain or "(all)", f"{each.loss:.4f}", f"{each.median:.4f}", f"{each.deviations:.1f}"]
        for each in spikes
    ]
    show(table_text(("step", "domain", "loss", "median before", "deviations"), rows))
    show(f"\nwhat was in it: ado-stream trace {args.run} --step {max(spikes, key=lambda spike: spike.deviations).step}")

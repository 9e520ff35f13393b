"""The mixture that another policy would have chosen, given the losses that a run recorded.

An open loop: the losses stay those of the recorded mixture.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ado_stream.cli.options import plain_options
from ado_stream.policy.registry import make_policy
from ado_stream.policy.replay import check_complete, replay


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("--policy", required=True, metavar="NAME", help="natural, ado, odm, doremi, ... (make_policy)")
    parser.add_argument("--option", action="append", default=[], metavar="K=V", help="option of the policy; repeatable")
    parser.add_argument("--plot", metavar="FILE.png", help="draw both mixtures there")
    parser.add_argument("--json", action="store_true", help="print mixtures of every step, and counters, as JSON")


def run(args: argparse.Namespace) -> int:
    """Feeds the record to the policy; prints a table or JSON, draws when asked."""
    from ado_stream.report.data import load_runs

    (recorded,) = load_runs([args.run])
    check_complete(recorded.step_S, str(recorded.path))
    options = plain_options(args.option)
    if args.policy == "ado":
        options.setdefault("total_steps", recorded.planned_steps)
    policy = make_policy(args.policy, dict(zip(recorded.domains, recorded.prior_K.tolist(), strict=True)), **options)
    lag = recorded.about.get("mixture_lag", 0)
    mixture_SK = replay(policy, recorded.domain_loss_SK, recorded.samples_SK, lag)
    drawn_K = recorded.samples_SK.sum(axis=0) / recorded.samples_SK.sum()
    summary = {
        "run": str(recorded.path),
        "policy": args.policy,
        "options": options,
        "steps": len(mixture_SK),
        "domains": list(recorded.domains),
        "drawn": drawn_K.tolist(),
        "mean": mixture_SK.mean(axis=0).tolist(),
        "end": mixture_SK[-1].tolist(),
        "health": policy.health(),
    }
    if args.json:
        print(json.dumps({**summary, "mixture": mixture_SK.tolist()}))
    else:
        _print(summary, recorded)
    if args.plot:
        _draw(recorded, replace(recorded, label=f"{args.policy} on {recorded.label}", mixture_SK=mixture_SK), args.plot)
        if not args.json:
            print(f"drawn: {args.plot}")
    return 0


def _print(summary: dict[str, Any], recorded: Any) -> None:
    print(
        f"{summary['steps']:,} steps of {recorded.label} (policy {recorded.about.get('policy')}), "
        f"replayed with {summary['policy']}; shares in %\n"
    )
    print(f"{'domain':<24}{'prior':>9}{'drawn':>9}{'mean':>9}{'at the end':>12}")
    rows = zip(summary["domains"], recorded.prior_K, summary["drawn"], summary["mean"], summary["end"], strict=True)
    for name, prior, drawn, mean, end in rows:
        print(f"{name[:24]:<24}{100 * prior:9.2f}{100 * drawn:9.2f}{100 * mean:9.2f}{100 * end:12.2f}")


def _draw(recorded: Any, replayed: Any, path: str) -> None:
    from ado_stream.report.mixture import draw_mixture
    from ado_stream.report.style import colors_of, styled

    with styled():
        plot = draw_mixture([recorded, replayed], colors_of(recorded.domains))
        assert plot is not None, "every step has a mixture"
        plot.figure.savefig(Path(path))

"""The mixture that another policy would have chosen, given the losses that a run recorded.

An open loop: the losses remain those of the recorded mixture. The run's own policy starts from its recorded options
and guards, which --option changes one by one; any other policy has the given options alone. Guards are an option too:
--option 'guards=[{name: floor, minimum: 0.01}]'.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ado_stream.cli.shared import load_one_run, picture_path, table_text
from ado_stream.policy.base_policy import PlannedStage, Policy, RunContext
from ado_stream.policy.policy_registry import make_run_policy
from ado_stream.record_types import corpus_domains
from ado_stream.simulate.recorded_run import check_complete, replay
from ado_stream.value_types import JsonObject
from ado_stream.visible import show, show_json
from ado_stream.yaml_files import parse_assignments

if TYPE_CHECKING:
    from ado_stream.report.run_data import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("--policy", required=True, metavar="NAME", help="natural, ado, odm, doremi, ... (make_policy)")
    parser.add_argument("--option", action="append", default=[], metavar="K=V", help="option of the policy; repeatable")
    parser.add_argument("--plot", metavar="FILE.png", help="draw both mixtures")
    parser.add_argument("--json", action="store_true", help="print every step's mixture and the counters as JSON")


def run(args: argparse.Namespace) -> None:
    """Runs the policy on the recorded losses; prints a table or JSON, draws with --plot."""
    plot = picture_path(args.plot) if args.plot else None
    recorded = load_one_run(args.run)
    check_complete(recorded.step_S, str(recorded.path))
    options = (
        dict(recorded.metadata.get("policy_options") or {}) if args.policy == recorded.metadata.get("policy") else {}
    )
    options |= parse_assignments(args.option, "--option", "--option start_step=500")
    guards = options.pop("guards", [])
    policy, lag = _policy(recorded, args.policy, options, guards), recorded.metadata.get("mixture_lag", 0)
    seq_len = recorded.metadata.get("seq_len") or 1
    validations = {each.step: (each.domain_loss_K, each.domain_tokens_K / seq_len) for each in recorded.evaluations}
    mixture_SK = replay(policy, recorded.domain_loss_SK, recorded.samples_SK, lag, recorded.mixture_SK[0], validations)
    drawn_K = recorded.samples_SK.sum(axis=0) / recorded.samples_SK.sum()
    summary = {
        "run": str(recorded.path),
        "policy": args.policy,
        "options": options,
        "guards": guards,
        "steps": len(mixture_SK),
        "domains": list(recorded.domains),
        "drawn": drawn_K.tolist(),
        "mean": mixture_SK.mean(axis=0).tolist(),
        "end": mixture_SK[-1].tolist(),
        "health": policy.health(),
    }
    if args.json:
        show_json({**summary, "mixture": mixture_SK.tolist()})
    else:
        _print(summary, recorded)
    if plot:
        _draw(recorded, replace(recorded, label=f"{args.policy} on {recorded.label}", mixture_SK=mixture_SK), plot)
        if not args.json:
            show(f"drawn: {plot}")


def _policy(recorded: "Run", name: str, options: JsonObject, guards: list[JsonObject]) -> Policy:
    """The policy as training would have made it in the recorded run."""
    about = recorded.metadata
    domains = corpus_domains(about)
    sizes = {name: size["samples"] for name, size in domains.items()}
    val_sizes = {name: size.get("val_samples") or 0 for name, size in domains.items()}
    prior = dict(zip(recorded.domains, recorded.prior_K.tolist(), strict=True))
    run = RunContext(
        steps=recorded.planned_steps,
        global_batch_size=about.get("global_batch_size"),
        mixture_lag=about.get("mixture_lag", 0),
        sizes=sizes or None,
        val_sizes=val_sizes or None,
        vocab_size=about.get("vocab_size"),
        stages=[PlannedStage(stage["steps"], stage["step_samples"]) for stage in about.get("stages") or ()],
    )
    return make_run_policy(name, prior, options, guards, run)


def _print(summary: JsonObject, recorded: "Run") -> None:
    show(
        f"{summary['steps']:,} steps of {recorded.label} (policy {recorded.metadata.get('policy')}), "
        f"replayed with {summary['policy']}; shares in %\n"
    )
    columns = zip(recorded.prior_K, summary["drawn"], summary["mean"], summary["end"], strict=True)
    rows = [
        [name, *(f"{100 * share:.2f}" for share in shares)]
        for name, shares in zip(summary["domains"], columns, strict=True)
    ]
    show(table_text(("domain", "prior", "drawn", "mean", "at the end"), rows))


def _draw(recorded: "Run", replayed: "Run", path: Path) -> None:
    from ado_stream.report.mixture_plot import draw_mixture
    from ado_stream.report.plot_style import domain_colors, styled

    with styled():
        plot = draw_mixture([recorded, replayed], domain_colors(recorded.domains))
        assert plot is not None, "every step has a mixture"
        plot.figure.savefig(path)

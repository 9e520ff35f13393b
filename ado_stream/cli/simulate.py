"""What a policy would do: a closed loop on synthetic laws, from a spec or 22 built-in domains.

Keys of a spec: see ado_stream/simulate/closed_loop.py.
"""

import argparse
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np

from ado_stream.cli.shared import announce, picture_path, table_text
from ado_stream.errors import ConfigError
from ado_stream.simulate.closed_loop import Outcome, Spec, read_spec, simulate
from ado_stream.simulate.default_spec import default_spec
from ado_stream.simulate.oracle import best_samples
from ado_stream.simulate.worlds import STEPS, WORLDS, world
from ado_stream.value_types import JsonObject
from ado_stream.visible import show, show_json
from ado_stream.yaml_files import parse_assignments, read_yaml

MAX_ROWS = 40  # domains in the printed table
ONLY_WITH = {"--policy": ("--option",)}
NOT_WITH = {"--world": ("SPEC", "--controlled"), "--controlled": ("SPEC", "--policy", "--steps", "--seed")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "spec", nargs="?", metavar="SPEC.yaml", help="domains and policies; default: 22 built-in domains"
    )
    parser.add_argument("--policy", action="append", metavar="NAME", help="try this policy instead; may be repeated")
    parser.add_argument("--option", action="append", default=[], metavar="K=V", help="option of the --policy given")
    parser.add_argument("--steps", type=int, help="steps instead of the spec's")
    parser.add_argument("--seed", type=int, help="seed instead of the spec's")
    parser.add_argument(
        "--world", metavar="NAME", choices=[*WORLDS, "all"], help=f"a built-in world, or all: {'; '.join(WORLDS)}"
    )
    parser.add_argument(
        "--controlled", action="store_true", help="domains that differ in one property: ADO against its formulas"
    )
    parser.add_argument("--plot", metavar="FILE.png", help="draw there (default simulate.png; with --json: none)")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")


def run(args: argparse.Namespace) -> None:
    """Simulates every policy, prints a table or JSON, draws."""
    if args.world == "all":
        _all_worlds(args)
        return
    plot = picture_path(args.plot or "simulate.png") if args.plot or not args.json else None
    if args.controlled:
        _controlled(args, plot)
        return
    spec = read_spec(_given(args))
    outcomes = _simulate(spec)
    summary = summarise(spec, outcomes)
    if args.json:
        show_json(summary)
    else:
        _print(spec, summary)
    if plot:
        _draw(spec, outcomes, plot)
        if not args.json:
            show(f"drawn: {plot}")


def _simulate(spec: Spec) -> dict[str, Outcome]:
    """The outcome of each policy of `spec`."""
    outcomes = {}
    for label in spec.policies:
        policy = spec.make(label)
        announce(f"simulating {label} for {spec.steps:,} steps")
        outcomes[label] = simulate(spec, policy)
    return outcomes


def _all_worlds(args: argparse.Namespace) -> None:
    """Every policy's regret in every world; a row a world."""
    if args.plot:
        raise ConfigError("--world all draws nothing; give --plot with one world.")
    found: JsonObject = {}
    for name in WORLDS:
        spec = read_spec(_given(argparse.Namespace(**{**vars(args), "world": name})))
        found[name] = summarise(spec, _simulate(spec))
    if args.json:
        show_json(found)
        return
    labels = list(next(iter(found.values()))["policies"])
    rows = [
        [name, f"{each['oracle']['loss']:.4f}"] + [f"{1e3 * each['policies'][label]['regret']:.1f}" for label in labels]
        for name, each in found.items()
    ]
    show("loss of the wanted domains above the oracle's, 1e-3 nats per token\n")
    show(table_text(("world", "oracle", *labels), rows))


def _controlled(args: argparse.Namespace, plot: Path | None) -> None:
    """Runs the controlled experiments, prints their shares or JSON, draws."""
    from ado_stream.simulate.controlled_experiments import run_experiments

    announce("simulating the controlled experiments")
    found = run_experiments()
    if args.json:
        keys = ("title", "varied", "value", "share", "expected")  # for the fields of an Experiment
        show_json([dict(zip(keys, astuple(each), strict=True)) for each in found])
    else:
        rows = [
            [
                each.title,
                f"{each.measured_X.min():.2%}",
                f"{each.measured_X.max():.2%}",
                f"{np.abs(each.measured_X - each.expected_X).max():.1e}",
            ]
            for each in found
        ]
        show(table_text(("experiment", "share from", "to", "off the formula by at most"), rows))
    if plot:
        from ado_stream.report.plot_style import styled
        from ado_stream.simulate.controlled_plot import draw_controlled

        with styled():
            draw_controlled(found).figure.savefig(plot)
        if not args.json:
            show(f"drawn: {plot}")


def summarise(spec: Spec, outcomes: dict[str, Outcome]) -> JsonObject:
    """The outcomes as JSON: final true losses (nats per token), shares, and steps to the first policy's final loss.

    oracle: the division of the run's samples that is best for what is wanted, from the true laws; regret: a policy's
    loss of what is wanted above the oracle's. steps_to_first: the step from which the loss by prior stays at or below
    the first policy's final one; None when the policy ends above.
    """
    prior_K, names = spec.domains.prior_K, spec.domains.names
    target = next(iter(outcomes.values())).mean_loss(prior_K)[-1]
    total = float(spec.steps * spec.global_batch_size)
    best_K = best_samples(spec.domains, spec.wanted_K, total)
    best = float(spec.wanted_K @ spec.domains.loss(best_K))
    policies = {}
    for label, outcome in outcomes.items():
        mean_S = outcome.mean_loss(prior_K)
        under_S = outcome.step_S[1 + np.flatnonzero(mean_S > target).max(initial=-1) :]
        policies[label] = {
            "loss_by_prior": float(mean_S[-1]),
            "loss_uniform": float(outcome.loss_SK[-1].mean()),
            "regret": float(outcome.mean_loss(spec.wanted_K)[-1]) - best,
            "steps_to_first": int(under_S[0]) if len(under_S) else None,
            "loss": dict(zip(names, outcome.loss_SK[-1].tolist(), strict=True)),
            "mixture": dict(zip(names, outcome.mixture_SK[-1].tolist(), strict=True)),
            "samples": dict(zip(names, outcome.samples_K.astype(int).tolist(), strict=True)),
            "health": outcome.policy.health(),
        }
    return {
        "steps": spec.steps,
        "global_batch_size": spec.global_batch_size,
        "domains": len(names),
        "oracle": {"loss": best, "mixture": dict(zip(names, (best_K / total).tolist(), strict=True))},
        "policies": policies,
    }


def _given(args: argparse.Namespace) -> JsonObject:
    if args.world:
        given = world(args.world, args.steps or STEPS)
    else:
        given = read_yaml(args.spec, "spec", resolve=True) if args.spec else default_spec(args.steps or 60_000)
    if args.policy:
        options = parse_assignments(args.option, "--option", "--option start_step=500")
        given["policies"] = {name: dict(options) for name in args.policy}
    overrides = {"steps": args.steps, "seed": args.seed}
    return {**given, **{key: value for key, value in overrides.items() if value is not None}}


def _print(spec: Spec, summary: JsonObject) -> None:
    policies, oracle = summary["policies"], summary["oracle"]
    show(f"{spec.steps:,} steps of {spec.global_batch_size} samples, {summary['domains']} domains; nats per token\n")
    rows = [
        [
            label,
            f"{found['loss_by_prior']:.4f}",
            f"{found['loss_uniform']:.4f}",
            f"{found['regret']:.4f}",
            "not reached" if found["steps_to_first"] is None else f"{found['steps_to_first']:,}",
        ]
        for label, found in policies.items()
    ]
    show(table_text(("policy", "by prior", "uniform", "regret", f"steps to the loss of {next(iter(policies))}"), rows))
    show(f"\nregret: what is wanted has a loss of {oracle['loss']:.4f} under the best fixed mixture, the oracle")
    show("\nfinal loss, and share of the batch at the end in %; the oracle's share of all samples")
    rows = [
        [
            name[:20],
            f"{100 * prior:.2f}%",
            f"{100 * oracle['mixture'][name]:.2f}%",
            *(
                cell
                for found in policies.values()
                for cell in (f"{found['loss'][name]:.4f}", f"{100 * found['mixture'][name]:.2f}%")
            ),
        ]
        for name, prior in zip(spec.domains.names[:MAX_ROWS], spec.domains.prior_K, strict=False)
    ]
    show(table_text(("domain", "prior", "oracle", *(part for label in policies for part in (label[:18], ""))), rows))
    if len(spec.domains.names) > MAX_ROWS:
        show(f"... and {len(spec.domains.names) - MAX_ROWS} more domains (--json has them)")


def _draw(spec: Spec, outcomes: dict[str, Outcome], path: Path) -> None:
    """Draws the loss over the steps, its difference to the first policy's, and every policy's mixture."""
    from ado_stream.report.plot_style import domain_color, new_figure, run_style, shorten, styled, thousands

    first = next(iter(outcomes))
    shades = [domain_color(index) for index in range(len(spec.domains.names))]
    with styled():
        figure = new_figure(3.2 + 2.6 * len(outcomes))
        rows: Any = figure.subfigures(2, 1, height_ratios=[3.2, 2.6 * len(outcomes)])
        left, right = rows[0].subplots(1, 2)
        stacks = rows[1].subplots(len(outcomes), 1, squeeze=False)[:, 0]
        for number, (name, outcome) in enumerate(outcomes.items()):
            label = shorten(name)
            later = outcome.step_S > spec.steps // 100
            mean_S = outcome.mean_loss(spec.domains.prior_K)
            ahead_S = mean_S - outcomes[first].mean_loss(spec.domains.prior_K)
            left.plot(outcome.step_S[later], mean_S[later], label=label, **run_style(number))
            right.plot(outcome.step_S[later], ahead_S[later], label=label, **run_style(number))
        left.set(xlabel="step", ylabel="loss (nats per token)", title="True loss, weighted by the prior")
        right.set(
            xlabel="step", ylabel="nats per token", title=f"The same minus that of {shorten(first)}: below 0 is better"
        )
        left.legend()
        for axes, (name, outcome) in zip(stacks, outcomes.items(), strict=True):
            axes.stackplot(outcome.step_S, 100 * outcome.mixture_SK.T, colors=shades)
            axes.set(xlabel="step", ylabel="share (%)", title=f"{shorten(name)}: mixture", ylim=(0, 100))
        for axes in (left, right, *stacks):
            thousands(axes.xaxis)
        if len(shades) <= MAX_ROWS:
            names = [shorten(name) for name in spec.domains.names]
            rows[1].legend(stacks[-1].collections, names, loc="outside lower center", ncols=5, fontsize=8)
        figure.savefig(path)

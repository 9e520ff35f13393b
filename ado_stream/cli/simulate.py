"""What a policy would do: a closed loop on synthetic laws, from a spec or 22 built-in domains.

Keys of a spec: see ado_stream/simulate/closed_loop.py.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from ado_stream.cli.shared import picture_path, policy_options, print_json
from ado_stream.errors import ConfigError, NotFound
from ado_stream.simulate.closed_loop import Outcome, Spec, read_spec, simulate
from ado_stream.simulate.default_spec import default_spec

MAX_ROWS = 40  # domains in the printed table


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
        "--controlled",
        action="store_true",
        help="domains that differ in one property: ADO against its formulas",
    )
    parser.add_argument("--plot", metavar="FILE.png", help="draw there (default simulate.png; with --json: none)")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")


def run(args: argparse.Namespace) -> None:
    """Simulates every policy, prints a table or JSON, draws."""
    plot = picture_path(args.plot or "simulate.png") if args.plot or not args.json else None
    if args.controlled:
        _controlled(args, plot)
        return
    spec = read_spec(_given(args))
    outcomes = {label: simulate(spec, spec.make(label)) for label in spec.policies}
    summary = summarise(spec, outcomes)
    if args.json:
        print_json(summary)
    else:
        _print(spec, summary)
    if plot:
        _draw(spec, outcomes, plot)
        if not args.json:
            print(f"drawn: {plot}")


def _controlled(args: argparse.Namespace, plot: Path | None) -> None:
    """Runs the controlled experiments, prints their shares or JSON, draws."""
    from ado_stream.simulate.controlled_experiments import run_experiments

    if args.spec or args.policy or args.steps or args.seed is not None:
        raise ConfigError("--controlled has its own domains, policy and steps; give it only --plot or --json.")
    found = run_experiments()
    if args.json:
        print_json(
            [
                {
                    "title": each.title,
                    "varied": each.axis,
                    "value": each.value_X.tolist(),
                    "share": each.measured_X.tolist(),
                    "expected": each.expected_X.tolist(),
                }
                for each in found
            ]
        )
    else:
        width = max(len(each.title) for each in found)
        print(f"{'experiment':<{width}}  {'share from':>10}  {'to':>8}  {'off the formula by at most':>26}")
        for each in found:
            off = float(np.abs(each.measured_X - each.expected_X).max())
            low, high = each.measured_X.min(), each.measured_X.max()
            print(f"{each.title:<{width}}  {low:>10.2%}  {high:>8.2%}  {off:>26.1e}")
    if plot:
        from ado_stream.report.plot_style import styled
        from ado_stream.simulate.controlled_plot import draw_controlled

        with styled():
            draw_controlled().figure.savefig(plot)
        if not args.json:
            print(f"drawn: {plot}")


def summarise(spec: Spec, outcomes: dict[str, Outcome]) -> dict[str, Any]:
    """The outcomes as JSON: final true losses (nats per token), shares, and steps to the first policy's final loss.

    steps_to_first: the step from which the loss by prior stays at or below it; None when the policy ends above.
    """
    prior_K, names = spec.domains.prior_K, spec.domains.names
    target = next(iter(outcomes.values())).mean_loss(prior_K)[-1]
    policies = {}
    for label, outcome in outcomes.items():
        mean_S = outcome.mean_loss(prior_K)
        under_S = outcome.step_S[1 + np.flatnonzero(mean_S > target).max(initial=-1) :]
        policies[label] = {
            "loss_by_prior": float(mean_S[-1]),
            "loss_uniform": float(outcome.loss_SK[-1].mean()),
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
        "policies": policies,
    }


def _given(args: argparse.Namespace) -> dict[str, Any]:
    given = _read_yaml(Path(args.spec)) if args.spec else default_spec(args.steps or 60_000)
    if args.option and not args.policy:
        raise ConfigError("--option needs --policy NAME: the policy that takes it.")
    if args.policy:
        given["policies"] = {name: policy_options(args.option) for name in args.policy}
    overrides = {"steps": args.steps, "seed": args.seed}
    return {**given, **{key: value for key, value in overrides.items() if value is not None}}


def _read_yaml(path: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        given = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except FileNotFoundError:
        raise NotFound(f"{path}: no such spec. Give a YAML file, or none for the built-in domains.") from None
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())}).") from None
    if not isinstance(given, dict):
        raise ConfigError(f"{path}: a spec is a mapping of keys to values, not a {type(given).__name__}.")
    return {str(key): value for key, value in given.items()}


def _print(spec: Spec, summary: dict[str, Any]) -> None:
    policies = summary["policies"]
    first = next(iter(policies))
    width = max(12, *map(len, policies))
    print(f"{spec.steps:,} steps of {spec.global_batch_size} samples, {summary['domains']} domains; nats per token\n")
    print(f"{'policy':<{width}}  {'by prior':>9}  {'uniform':>9}  {f'steps to the loss of {first}':>30}")
    for label, found in policies.items():
        steps = "not reached" if found["steps_to_first"] is None else f"{found['steps_to_first']:,}"
        print(f"{label:<{width}}  {found['loss_by_prior']:9.4f}  {found['loss_uniform']:9.4f}  {steps:>30}")
    print("\nfinal loss, and share of the batch at the end in %")
    columns = "".join(f"  {label[:18]:>18}" for label in policies)
    print(f"{'domain':<20} {'prior':>6}{columns}")
    for index, name in enumerate(spec.domains.names[:MAX_ROWS]):
        cells = "".join(
            f"  {found['loss'][name]:9.4f} {100 * found['mixture'][name]:7.2f}%" for found in policies.values()
        )
        print(f"{name[:20]:<20} {100 * spec.domains.prior_K[index]:5.2f}%{cells}")
    if len(spec.domains.names) > MAX_ROWS:
        print(f"... and {len(spec.domains.names) - MAX_ROWS} more domains (--json has them)")


def _draw(spec: Spec, outcomes: dict[str, Outcome], path: Path) -> None:
    """Draws the loss over the steps, its difference to the first policy's, and every policy's mixture."""
    from ado_stream.report.plot_style import domain_color, new_figure, run_style, styled, thousands

    first = next(iter(outcomes))
    shades = [domain_color(index) for index in range(len(spec.domains.names))]
    with styled():
        figure = new_figure(3.2 + 2.6 * len(outcomes))
        rows: Any = figure.subfigures(2, 1, height_ratios=[3.2, 2.6 * len(outcomes)])
        left, right = rows[0].subplots(1, 2)
        stacks = rows[1].subplots(len(outcomes), 1, squeeze=False)[:, 0]
        for number, (label, outcome) in enumerate(outcomes.items()):
            later = outcome.step_S > spec.steps // 100
            mean_S = outcome.mean_loss(spec.domains.prior_K)
            ahead_S = mean_S - outcomes[first].mean_loss(spec.domains.prior_K)
            left.plot(outcome.step_S[later], mean_S[later], label=label, **run_style(number))
            right.plot(outcome.step_S[later], ahead_S[later], label=label, **run_style(number))
        left.set(xlabel="step", ylabel="loss (nats per token)", title="True loss, weighted by the prior")
        right.set(xlabel="step", ylabel="nats per token", title=f"The same minus that of {first}: below 0 is better")
        left.legend()
        for axes, (label, outcome) in zip(stacks, outcomes.items(), strict=True):
            axes.stackplot(outcome.step_S, 100 * outcome.mixture_SK.T, colors=shades)
            axes.set(xlabel="step", ylabel="share (%)", title=f"{label}: mixture", ylim=(0, 100))
        for axes in (left, right, *stacks):
            thousands(axes.xaxis)
        if len(shades) <= MAX_ROWS:
            rows[1].legend(stacks[-1].collections, spec.domains.names, loc="outside lower center", ncols=5, fontsize=8)
        figure.savefig(path)

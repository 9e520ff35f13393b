"""Which settings of ADO matter? Each is varied alone, in a closed loop on synthetic laws.

For every setting and seed: a run on the built-in domains, and how its outcome differs from that of the defaults in
(1) the final true loss with domains weighted by the prior, (2) the same unweighted, in 1e-3 nats per token, and (3)
half the sum of |share - default share| at the end, in %. What the row "defaults, another seed" shows is noise: what
does not exceed it did not matter. Synthetic laws say which settings move the mixture; not what they do to a model. No
bar.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ado_stream.policy.ado_config import AdoConfig
from ado_stream.simulate.closed_loop import Outcome, read_spec, simulate
from ado_stream.simulate.default_spec import default_spec
from benchmarks.common import size, write_result

_OTHER = 1000  # added to a seed to get another


def variations(steps: int) -> dict[str, dict[str, Mapping[str, Any]]]:
    """{setting: {value as text: options of ADO}}, the schedule as multiples of the default's for so many steps.

    The fit never sees a step before ignore_steps, so it moves with a start before it, and the start with it beyond: the
    value then names both.
    """
    plan = AdoConfig().plan(num_domains=22, total_steps=steps)
    start, interval, ignore, every = plan.start_step, plan.interval, plan.ignore_steps, plan.fit.every
    starts: dict[str, Mapping[str, Any]] = {
        f"{n} steps" + (f", ignore_steps {n} too" if n < ignore else ""): {
            "start_step": n,
            "ignore_steps": min(n, ignore),
        }
        for n in (start // 4, start * 3)
    }
    ignored: dict[str, Mapping[str, Any]] = {
        f"{n} steps" + (f", start_step {n} too" if n > start else ""): {"start_step": max(n, start), "ignore_steps": n}
        for n in (0, ignore // 4, ignore * 2)
    }
    coarse = {"grid_log_beta": (-2.0, 1.5, 5.0), "grid_log_eps": (-2.0, 0.0, 1.5), "grid_alpha": (0.1, 0.35, 0.7)}
    narrow = {"grid_alpha": (0.0, 0.1, 0.2, 0.3), "grid_log_beta": (-2.0, 0.0, 2.0)}
    return {
        "interval": {f"{n} steps": {"interval": n} for n in (max(1, interval // 4), interval * 4)},
        "start_step": starts,
        "ignore_steps": ignored,
        "s (credit_power)": {str(s): {"credit_power": s} for s in (0.0, 0.25, 1.0)},
        "g1 (credit_memory)": {str(g): {"credit_memory": g} for g in (0.0, 0.99)},
        "g2 (mixture_memory)": {str(g): {"mixture_memory": g} for g in (0.01, 0.5, 1.0)},
        "floor": {str(d): {"floor": d} for d in (0.0, 0.001, 0.03)},
        "floor_rule": {"reference": {"floor": 0.01, "floor_rule": "reference"}},
        "credit": {"residual": {"credit": "residual"}},
        "shared_count": {"own counts": {"shared_count": False}},
        "grid resolution": {"3 x 3 x 3 starts": {"fit": {"every": every, **coarse}}},
        "grid range": {"alpha to 0.3, beta to e^2": {"fit": {"every": every, **narrow}}},
        "smoothing": {"none": {"fit": {"every": every, "smooth_window": 0}}},
        "points kept": {"a third": {"fit": {"every": 3 * every}}},
        "hold_steps": {f"{interval}": {"hold_steps": interval}},
    }


def outcome_of(options: Mapping[str, Any], steps: int, seed: int) -> Outcome:
    """A run of ADO with these options on the built-in domains."""
    spec = read_spec({**default_spec(steps), "seed": seed, "policies": {"ado": dict(options)}})
    return simulate(spec, spec.make("ado"))


def difference(found: Outcome, default: Outcome, prior_K: np.ndarray) -> tuple[float, float, float]:
    """The three figures of the file's docstring."""
    by_prior = found.mean_loss(prior_K)[-1] - default.mean_loss(prior_K)[-1]
    unweighted = found.loss_SK[-1].mean() - default.loss_SK[-1].mean()
    moved = 0.5 * np.abs(found.mixture_SK[-1] - default.mixture_SK[-1]).sum()
    return 1e3 * float(by_prior), 1e3 * float(unweighted), 100 * float(moved)


def table(steps: int, seeds: Sequence[int], settings: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[dict]:
    """A row for each value of each setting, largest move first: the three figures, averaged over `seeds`."""
    prior_K = read_spec(default_spec(steps)).domains.prior_K
    defaults = [outcome_of({}, steps, seed) for seed in seeds]
    cases = [(setting, value, options, 0) for setting, own in settings.items() for value, options in own.items()]
    rows = []
    for setting, value, options, shift in [("seed", "defaults, another seed", {}, _OTHER), *cases]:
        found = [outcome_of(options, steps, seed + shift) for seed in seeds]
        figures = [difference(each, default, prior_K) for each, default in zip(found, defaults, strict=True)]
        means = map(statistics.fmean, zip(*figures, strict=True))
        means_by_name = dict(zip(("by_prior", "unweighted", "moved"), means, strict=True))
        rows.append({"setting": setting, "value": value, **means_by_name})
    return sorted(rows, key=lambda row: -row["moved"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=size(6000, 60))
    parser.add_argument("--seeds", type=int, default=size(3, 1))
    args = parser.parse_args()
    settings = dict(list(variations(args.steps).items())[: size(None, 1)])
    rows = table(args.steps, range(args.seeds), settings)
    print(f"{args.steps} steps, {args.seeds} seeds; differences to the defaults\n")
    print(f"{'setting':<22}{'value':<32}{'loss by prior':>14}{'unweighted':>12}{'mixture moved':>15}")
    for row in rows:
        print(
            f"{row['setting']:<22}{row['value']:<32}{row['by_prior']:>+12.2f}e-3{row['unweighted']:>+10.2f}e-3"
            f"{row['moved']:>13.1f} %"
        )
    write_result("sensitivity", {"steps": args.steps, "seeds": args.seeds, "unit": "1e-3 nats; %", "rows": rows})


if __name__ == "__main__":
    main()

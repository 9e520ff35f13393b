"""What does a step of the policy cost, at any t and K, what does its state weigh, how fast is the closed loop?

    python -m benchmarks policy [--full] [--late-step 140000]

Prints processor microseconds of update() near t = 100 and t = 1,000,000, blocks taken in turn (refits are not in them:
bench_fit.py), of an addition of K float64 numbers by NumPy between them, megabytes of the state and seconds to save and
load it, and seconds of 60,000 simulated steps with real fits.

Bars at K = 22: update() costs at most 250 such additions, early and late, and at most 20 % more late than early; a
simulated step costs at most 6 updates, and at K = 1000 24 (`--full`: minutes). At K = 1000 a refit of `target` costs at
most 400 of ADO's updates, and ADO's state has at most 48 MB: 32 MiB of losses as base64. The million updates before
take most of the time: `--late-step 140000`, where the history has been thinned twice, says nearly as much.
"""

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np

import ado_stream as ado
from ado_stream.simulate.closed_loop import read_spec, simulate
from ado_stream.simulate.default_spec import default_spec
from benchmarks.common import bar, median_s, size, write_result

BATCH = 256
MANY = size(1000, 23)  # domains
BLOCKS, BLOCK_STEPS = size((25, 200), (2, 2))
EARLY_STEP, LATE_STEP = size((100, 1_000_000), (10, 40))
MIDDLE_STEP, STATE_STEPS, REFIT_STEPS, SIMULATED_STEPS = size((10_000, 60_000, 1200, 60_000), (20, 20, 200, 100))
ADDITIONS = 2000  # between blocks of updates
# The bars: of an update, in additions; of late over early; of a simulated step, in updates.
MOST_ADDITIONS, LATE_OVER_EARLY, MOST_UPDATES = 250.0, 1.2, {22: 6.0, MANY: 24.0}
MOST_REFIT = 400.0  # in updates
MOST_STATE_MB = 48.0


class Driver:
    """A policy fed with the same thousand batches over and over, its laws given: updates without a fit."""

    def __init__(self, num_domains: int, **settings):
        generator = np.random.default_rng(0)
        prior_K = generator.dirichlet(np.full(num_domains, 0.5)) + 1e-4
        log_beta_K, alpha_K = generator.normal(2.0, 0.3, num_domains), generator.uniform(0.1, 0.6, num_domains)
        law = ado.ScalingLawFit(log_beta_K, np.full(num_domains, 0.6), alpha_K)
        config = ado.AdoConfig(start_step=0, interval=1000, ignore_steps=0, **settings)
        self.policy = ado.AdoPolicy(prior_K, config, lambda *_: law)
        self._count_TK = generator.multinomial(BATCH, prior_K / prior_K.sum(), size=1000)
        noisy_TK = generator.normal(3.0, 0.1, (1000, num_domains))
        self._loss_TK = np.where(self._count_TK > 0, noisy_TK, np.nan)

    def advance(self, steps: int) -> float:
        """Processor seconds that this many updates took: one thread, so a busy machine distorts them least."""
        update, loss_TK, count_TK = self.policy.update, self._loss_TK, self._count_TK
        start = time.process_time()
        for step in range(steps):
            update(loss_TK[step % 1000], count_TK[step % 1000])
        return time.process_time() - start


def cost_of_update(num_domains: int, late_step: int, blocks: int = BLOCKS, **settings) -> dict[str, float]:
    """Median processor microseconds of update() near t = 100 and t = late_step, blocks taken in turn."""
    late = Driver(num_domains, **settings)
    late.advance(late_step)
    early_us, late_us, addition_us = [], [], []
    total_K, number_K = np.zeros(num_domains), np.ones(num_domains)
    for _ in range(blocks):
        early = Driver(num_domains, **settings)
        early.advance(EARLY_STEP)
        early_us.append(early.advance(BLOCK_STEPS) / BLOCK_STEPS * 1e6)
        late_us.append(late.advance(BLOCK_STEPS) / BLOCK_STEPS * 1e6)
        start = time.process_time()
        for _ in range(ADDITIONS):
            np.add(total_K, number_K, out=total_K)
        addition_us.append((time.process_time() - start) / ADDITIONS * 1e6)
    early_cost, late_cost, addition = map(statistics.median, (early_us, late_us, addition_us))
    return {
        "early_us": early_cost,
        "late_us": late_cost,
        "best_us": min(early_us + late_us),
        "late_step": late_step,
        "late_over_early": late_cost / early_cost,
        "addition_us": addition,
        "additions": max(early_cost, late_cost) / addition,
    }


def cost_of_state(num_domains: int, steps: int) -> dict[str, float]:
    """Megabytes of the state as JSON after that many steps, and seconds to save and to load it."""
    driver = Driver(num_domains)
    driver.advance(steps)
    text = json.dumps(driver.policy.state_dict())
    fresh = Driver(num_domains).policy
    return {
        "steps": steps,
        "megabytes": len(text) / 1e6,
        "save_s": median_s(lambda: json.dumps(driver.policy.state_dict()), repeats=3),
        "load_s": median_s(lambda: fresh.load_state_dict(json.loads(text)), repeats=3),
    }


def cost_of_refit(num_domains: int, steps: int = REFIT_STEPS) -> dict[str, float]:
    """Of `target`, its 64 blocks of losses full: median processor milliseconds of updates that refit, and its state."""
    policy = ado.make_policy("target", np.ones(num_domains), total_steps=4 * steps)
    generator, took_s = np.random.default_rng(0), []
    for step in range(steps):
        count_K = generator.multinomial(4 * num_domains, policy.mixture)
        loss_K = np.where(count_K > 0, generator.normal(2.0 + (1.0 + step) ** -0.3, 0.2, num_domains), np.nan)
        start, refit_step = time.process_time(), policy.fit_step
        policy.update(loss_K, count_K)
        if policy.fit_step != refit_step:
            took_s.append(time.process_time() - start)
    megabytes = len(json.dumps(policy.state_dict())) / 1e6
    return {"refits": len(took_s), "refit_ms": 1e3 * statistics.median(took_s), "state_megabytes": megabytes}


def closed_loop(num_domains: int, steps: int) -> dict[str, float]:
    """Seconds of a simulated run of ADO with its real fits."""
    given = default_spec(steps) if num_domains == 22 else {"steps": steps, "domains": num_domains, "noise": 0.35}
    spec = read_spec({**given, "policies": {"ado": {}}})
    few = {**given, "steps": size(300, 60), "policies": {"ado": {}}}
    simulate(read_spec(few), spec.make("ado"))  # loads compiled code
    start, start_cpu = time.perf_counter(), time.process_time()
    outcome = simulate(spec, spec.make("ado"))
    return {
        "steps": steps,
        "seconds": time.perf_counter() - start,
        "processor_seconds": time.process_time() - start_cpu,
        "refits": outcome.policy.health()["refits"],
    }


def bars(payload: dict[str, Any]) -> list[dict[str, Any]]:
    """Every bar with what was measured, and whether it holds; those of cases that were not run are left out."""
    update = {22: payload["update_K22"]["default"], MANY: payload["update_K1000"]}
    late = f"t = {update[22]['late_step']:,} over t = {EARLY_STEP}"
    refit = payload.get("target_refit_K1000")
    held = [
        bar("additions of K numbers in an update(), 22 domains", update[22]["additions"], MOST_ADDITIONS),
        bar(late, update[22]["late_over_early"], LATE_OVER_EARLY),
        bar("megabytes of the state, 1000 domains", payload["state_K1000"]["megabytes"], MOST_STATE_MB),
    ]
    if refit:
        updates = refit["refit_ms"] / (1e-3 * update[MANY]["late_us"])
        held.append(bar("updates in a refit of target, 1000 domains", updates, MOST_REFIT))
    for num, name in ((22, "simulate_K22"), (MANY, "simulate_K1000")):
        if run := payload.get(name):
            updates = run["processor_seconds"] / run["steps"] / (1e-6 * update[num]["late_us"])
            held.append(bar(f"updates in a simulated step, {num} domains", updates, MOST_UPDATES[num]))
    return held


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--full", action="store_true", help="with the closed loop at K = 1000 (minutes)")
    parser.add_argument("--late-step", type=int, default=LATE_STEP, help="the late t (default %(default)s)")
    args = parser.parse_args()
    cases = {
        "default": cost_of_update(22, args.late_step),
        "residual credit": cost_of_update(22, MIDDLE_STEP, credit="residual"),
        "reference": cost_of_update(22, MIDDLE_STEP, floor=0.01, floor_rule="reference"),
    }
    payload: dict[str, Any] = {
        "update_K22": cases,
        "update_K1000": cost_of_update(MANY, MIDDLE_STEP),
        "state_K22": cost_of_state(22, STATE_STEPS),
        "state_K1000": cost_of_state(MANY, STATE_STEPS),
        "target_refit_K1000": cost_of_refit(MANY),
        "simulate_K22": closed_loop(22, SIMULATED_STEPS),
    }
    if args.full:
        payload["simulate_K1000"] = closed_loop(MANY, SIMULATED_STEPS)
    write_result("policy", payload, bars(payload))


if __name__ == "__main__":
    main()

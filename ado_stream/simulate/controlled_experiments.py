"""Controlled experiments: five domains equal but for one property of the first; its share under ADO, and the expected.

Each experiment runs the policy itself and computes the share by docs/math.md section 4 in closed form. With weight w
for the first domain and 1 for each other

    rho = w / (w + K - 1),      w = max(alpha, 0.05) / max(alpha', 0.05)    exponents, at equal gaps
                                    (L - eps) / (L' - eps')                 gaps left to learn, at equal exponents
                                    mu / mu'                                priors
                                    (h / h')^(1/2)                          credit: share of recent samples
                                    clamp(1 + (l - L) / (L - eps), 1/2, 2)  residual credit, l observed

and after a law changed at step t0 the mixture is 0.1 rho + 0.9 (mu + (rho - mu)(1 - t0 / t)). All above the floor.
Invariant: `measured` comes from AdoPolicy alone, `expected` from these formulas alone.
"""

from dataclasses import dataclass

import numpy as np

from ado_stream.policy.ado_config import AdoConfig
from ado_stream.policy.ado_policy import AdoPolicy
from ado_stream.policy.scaling_laws import ScalingLawFit
from ado_stream.value_types import Floats

NUM_DOMAINS = 5
FLOOR = 0.01
BATCH = 64.0
_ALPHA, _GAP, _EPS = 0.2, 0.5, 2.0  # of every domain that is not changed; nats
_LONG = 300  # steps after which credit has forgotten the prior: 0.9^300 = 2e-14
_CHANGE_STEP, _NUM_STEPS = 500, 1000  # two refits


@dataclass(frozen=True)
class Experiment:
    """A property's values (X,), and the first domain's share under ADO and by the formula, both (X,)."""

    title: str
    axis: str
    value_X: Floats
    measured_X: Floats
    expected_X: Floats


def run_experiments() -> list[Experiment]:
    """The six experiments of the file's docstring, in its order. Takes a fraction of a second."""
    return [_exponent(), _gap(), _prior(), _drawn(), _residual(), _over_time()]


def _exponent() -> Experiment:
    value_X = np.array([0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    measured_X = np.array([_share(_law(alpha=alpha)) for alpha in value_X])
    return Experiment(
        "Exponent", "its α; the others' 0.2", value_X, measured_X, _expected(np.maximum(value_X, 0.05) / _ALPHA)
    )


def _gap() -> Experiment:
    value_X = np.linspace(0.0, 3.0, 13)
    measured_X = np.array([_share(_law(gap=max(gap, 1e-300))) for gap in value_X])
    return Experiment(
        "Gap left to learn", "its L − ε (nats); the others' 0.5", value_X, measured_X, _expected(value_X / _GAP)
    )


def _prior() -> Experiment:
    value_X = np.linspace(0.001, 0.9, 13)
    equal_K = np.full(NUM_DOMAINS, BATCH / NUM_DOMAINS)
    measured_X = np.array(
        [_share(_law(), prior_K=_with_first(prior), count_K=equal_K, steps=_LONG) for prior in value_X]
    )
    return Experiment("Prior, drawn equally", "its share in the prior", value_X, measured_X, _expected(_odds(value_X)))


def _drawn() -> Experiment:
    value_X = np.linspace(0.0, 0.95, 13)
    measured_X = np.array([_share(_law(), count_K=BATCH * _with_first(share), steps=_LONG) for share in value_X])
    return Experiment(
        "Credit: drawn lately", "its share of the samples lately", value_X, measured_X, _expected(_odds(value_X) ** 0.5)
    )


def _residual() -> Experiment:
    value_X = np.linspace(-1.0, 1.5, 11)
    measured_X = np.array([_share(_law(), residual=value * _GAP, credit="residual") for value in value_X])
    return Experiment(
        "Credit: worse than forecast",
        "(observed − forecast) / (L − ε)",
        value_X,
        measured_X,
        _expected(np.clip(1.0 + value_X, 0.5, 2.0)),
    )


def _over_time() -> Experiment:
    """The first domain's gap doubles at a refit: its preference becomes 1/3; the mixture follows by g2 and pibar."""
    laws = iter([_law(), _law(gap=2.0 * _GAP)])
    config = AdoConfig(start_step=0, interval=_CHANGE_STEP, ignore_steps=0, floor=FLOOR)
    policy = AdoPolicy(np.ones(NUM_DOMAINS), config, lambda *_: next(laws))
    count_K, loss_K = np.full(NUM_DOMAINS, BATCH / NUM_DOMAINS), np.full(NUM_DOMAINS, _EPS + _GAP)
    measured_T = np.array([policy.update(loss_K, count_K)[0] for _ in range(_NUM_STEPS)])
    value_X = np.array([400, 450, 499, 500, 520, 550, 600, 650, 700, 750, 800, 850, 900, 950, 999])
    fair, wanted = 1.0 / NUM_DOMAINS, 2.0 / (NUM_DOMAINS + 1)
    average_X = fair + (wanted - fair) * (1.0 - _CHANGE_STEP / np.maximum(value_X, _CHANGE_STEP))
    expected_X = np.where(value_X < _CHANGE_STEP, fair, 0.1 * wanted + 0.9 * average_X)
    return Experiment(
        "Mixture after a law changed", "step; change at 500", value_X.astype(float), measured_T[value_X], expected_X
    )


def _law(alpha: float = _ALPHA, gap: float = _GAP) -> ScalingLawFit:
    """Laws with these values for the first domain; gap in nats after one batch."""
    alpha_K, gap_K = np.full(NUM_DOMAINS, _ALPHA), np.full(NUM_DOMAINS, _GAP)
    alpha_K[0], gap_K[0] = alpha, gap
    return ScalingLawFit(np.log(gap_K) + alpha_K * np.log(BATCH), np.full(NUM_DOMAINS, np.log(_EPS)), alpha_K)


def _share(
    law: ScalingLawFit,
    prior_K: Floats | None = None,
    count_K: Floats | None = None,
    steps: int = 1,
    residual: float = 0.0,
    credit: str = "history",
) -> float:
    """The first domain's share after `steps` updates; g2 = 1, so that the mixture is the preference of the last one."""
    config = AdoConfig(start_step=0, interval=_LONG, ignore_steps=0, floor=FLOOR, mixture_memory=1.0, credit=credit)
    policy = AdoPolicy(np.ones(NUM_DOMAINS) if prior_K is None else prior_K, config, lambda *_: law)
    count_K = np.full(NUM_DOMAINS, BATCH / NUM_DOMAINS) if count_K is None else count_K
    loss_K = law.predict(BATCH)
    loss_K[0] += residual
    for _ in range(steps):
        mixture_K = policy.update(loss_K, count_K)
    return float(mixture_K[0])


def _with_first(share: float) -> Floats:
    """Shares (K,) with that of the first domain, the others alike."""
    share_K = np.full(NUM_DOMAINS, (1.0 - share) / (NUM_DOMAINS - 1))
    share_K[0] = share
    return share_K


def _odds(share_X: Floats) -> Floats:
    return share_X * (NUM_DOMAINS - 1) / (1.0 - share_X)


def _expected(weight_X: Floats) -> Floats:
    """The first domain's share at weight w against 1 for each other: rho, kept within what the floors leave."""
    rho_X = weight_X / (weight_X + NUM_DOMAINS - 1)
    return np.clip(rho_X, FLOOR, 1.0 - (NUM_DOMAINS - 1) * FLOOR)

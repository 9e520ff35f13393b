"""Operator's orders to a running job: bounds on shares, a frozen mixture, a mixture that needs no losses.

Invariant: the mixture of every update follows from the policy's and from the orders given at that update or before, so
a run that is resumed and given the same orders at the same steps draws the same batches. The policy inside is updated
as without orders: `release` goes back to it as if it had never been overruled.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ado_stream.errors import ConfigError, ResumeError
from ado_stream.option_checks import known_name
from ado_stream.policy.base_policy import Policy
from ado_stream.policy.guards import Guard
from ado_stream.policy.mixture_bounds import bring_within
from ado_stream.policy.state_codec import check_shares
from ado_stream.policy.static_policies import Natural, Uniform
from ado_stream.suggest import did_you_mean
from ado_stream.value_types import Array, Bools, Floats, Ints, JsonMapping

FORMS = {
    "pin": "pin DOMAIN=SHARE ...",
    "bound": "bound DOMAIN=LOW:HIGH ...",
    "freeze": "freeze",
    "release": "release [DOMAIN ...]",
    "policy": "policy natural|uniform|the run's own",
}
_WITHOUT_LOSSES = {policy.kind: policy for policy in (Natural, Uniform)}
_FREE = (0.0, 1.0)


class Order(NamedTuple):
    """bounds: (low, high) share by domain. base: the mixture that is bounded: "freeze", the name of a policy, "" the
    run's own policy; None leaves it.
    """

    bounds: dict[str, tuple[float, float]]
    base: str | None


def parse_order(words: Sequence[str], names: Sequence[str]) -> Order:
    """The order in `words`, such as ["pin", "code=0.2"], for a run of the domains `names`. Raises ConfigError."""
    verb, *rest = words
    if verb not in FORMS:
        raise ConfigError(f"no order {verb!r}{did_you_mean(verb, FORMS)}; there are: {'; '.join(FORMS.values())}.")
    if (verb in ("pin", "bound") and not rest) or (verb == "freeze" and rest) or (verb == "policy" and len(rest) != 1):
        raise ConfigError(f"{' '.join(words)!r}: expected {FORMS[verb]}.")
    if verb == "freeze":
        return Order({}, "freeze")
    if verb == "policy":
        return Order({}, rest[0])
    if verb == "release":
        released = {known_name("domain", name, names): _FREE for name in rest or names}
        return Order(released, None if rest else "")
    bounds = {}
    for word in rest:
        name, _, shares = word.rpartition("=")
        low, high = _shares(word, [shares, shares] if verb == "pin" else shares.split(":"), FORMS[verb])
        bounds[known_name("domain", name, names)] = low, high
    return Order(bounds, None)


def _shares(word: str, texts: list[str], form: str) -> list[float]:
    try:
        low, high = map(float, texts)
    except ValueError:
        raise ConfigError(f"{word!r}: expected {form}, with shares from 0 to 1.") from None
    if not 0.0 <= low <= high <= 1.0:
        raise ConfigError(f"{word!r}: expected shares from 0 to 1, the lower one first.")
    return [low, high]


class Control(Guard):
    """The orders in force around a run's policy; without any, its mixture to the bit.

    memory: `low` and `high`, the bounds of the shares; `base`, the mixture in the policy's place, NaN where there is
    none. Shares that no bound touches keep their proportions. Orders go beyond guards inside and the policy's floor.
    """

    kind = "control"

    def __init__(self, policy: Policy):
        super().__init__(policy)
        self._later: dict[int, list[Order]] = {}

    def check(self, order: Order) -> None:
        """Raises ConfigError when the order cannot be carried out as things are."""
        self._after(order)

    def apply(self, order: Order, step: int | None = None) -> None:
        """Puts the order into force with the next update, or with that of a later `step`. Raises as `check`."""
        if step is not None and step > self.step:
            self._later.setdefault(step, []).append(order)
        else:
            self.memory |= self._after(order)

    def _initial(self) -> dict[str, Array]:
        num = self.num_domains
        return {**super()._initial(), "low": np.zeros(num), "high": np.ones(num), "base": np.full(num, np.nan)}

    def _after(self, order: Order) -> dict[str, Floats]:
        """`memory` with the order in force."""
        low_K, high_K, base_K = (self.memory[name].copy() for name in ("low", "high", "base"))
        for name, bounds in order.bounds.items():
            index = self.labels.index(name)
            low_K[index], high_K[index] = bounds
        if order.base is not None:
            base_K = self._base(order.base)
        if low_K.sum() > 1.0 + 1e-12 or high_K.sum() < 1.0 - 1e-12:
            which, total = ("lower", low_K.sum()) if low_K.sum() > 1.0 else ("upper", high_K.sum())
            bounds_text = [
                f"{name}={low:g}:{high:g}"
                for name, low, high in zip(self.labels, low_K, high_K, strict=True)
                if (low, high) != _FREE
            ]
            raise ConfigError(
                f"the {which} bounds would sum to {total:g}; no mixture has them: {', '.join(bounds_text)}.\n"
                "  Release a domain, or give bounds that leave room: lower ones sum to at most 1, upper ones to 1 "
                "or more."
            )
        return {"low": low_K, "high": high_K, "base": base_K}

    def _base(self, name: str) -> Floats:
        inner = self.policy
        while isinstance(inner, Guard):
            inner = inner.policy
        if name == "freeze":
            return self._mixture_K
        if name in ("", inner.kind):
            return np.full(self.num_domains, np.nan)
        if name not in _WITHOUT_LOSSES:
            raise ConfigError(
                f"policy {name!r} cannot take over a run{did_you_mean(name, [*_WITHOUT_LOSSES, inner.kind])}; "
                f"{' and '.join(_WITHOUT_LOSSES)} can, and {inner.kind}, its own.\n"
                "  What learns from losses has to see them from the first step: start a run with that policy.name."
            )
        return _WITHOUT_LOSSES[name](dict(zip(self.labels, self._prior_K, strict=True))).mixture

    def _next_mixture(self, loss_K: Floats, count_K: Floats, seen_K: Bools) -> Floats:
        for order in self._later.pop(self.step, ()):
            self.memory |= self._after(order)
        return super()._next_mixture(loss_K, count_K, seen_K)

    def _apply_bound(self, mixture_K: Floats) -> Floats:
        base_K = self.memory["base"]
        return bring_within(mixture_K if np.isnan(base_K).any() else base_K, self.memory["low"], self.memory["high"])

    def _remap_memory(self, saved: JsonMapping, source_K: Ints) -> dict[str, Array]:
        memory = super()._remap_memory(saved, source_K)
        low_K, high_K, base_K = (memory[name] for name in ("low", "high", "base"))
        if not ((low_K >= 0.0) & (low_K <= high_K) & (high_K <= 1.0)).all():
            raise ResumeError("policy state: low and high are no bounds of shares, from 0 to 1, the lower one first.")
        if not np.isnan(base_K).all():
            base_K = np.where(source_K >= 0, base_K, self._prior_K)  # domains added since take their share of the prior
            total = base_K.sum()
            with np.errstate(invalid="ignore"):  # of damaged ones
                memory["base"] = check_shares(base_K if abs(total - 1.0) < 1e-9 else base_K / total, "base")
        return memory

    def _repr_bound(self) -> str:
        return f"low={self.memory['low']}, high={self.memory['high']}"


def in_control(policy: Policy) -> Control:
    """`policy` in a Control, or itself when it is one."""
    return policy if isinstance(policy, Control) else Control(policy)

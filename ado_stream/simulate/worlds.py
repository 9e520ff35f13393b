"""Synthetic worlds in which the mixture matters, as data: `ado-stream simulate --world NAME`.

Ten wanted domains with the shares of a real corpus, which learn alike: at the run's end a percent more of any lowers
its loss by the same amount, so that the natural mixture of these ten is also the best. What can be gained is due to
what the world adds: text that cannot be learnt, that is fully learnt after a fiftieth of the run, or that is exhausted
and repeats. `unlike` adds nothing: its domains differ in how fast they learn. What counts is the loss of the wanted
domains, by size; a domain that repeats is wanted itself, at its share.
"""

from collections.abc import Callable, Mapping

from ado_stream.value_types import JsonMapping, JsonObject

STEPS, BATCH = 6000, 64
_MakeSpec = Callable[[int], JsonObject]  # of the number of steps
# name: share among the wanted, eps in nats, alpha, how fast it learns in the world `unlike`
_WANTED = {
    "books": (0.29, 2.6, 0.22, 0.6),
    "law": (0.18, 1.8, 0.30, 1.0),
    "code": (0.17, 1.2, 0.36, 1.9),
    "maths": (0.11, 1.5, 0.33, 1.2),
    "web": (0.07, 2.4, 0.25, 0.7),
    "court": (0.06, 1.9, 0.28, 1.0),
    "medicine": (0.05, 2.0, 0.26, 0.9),
    "chat": (0.04, 2.2, 0.24, 0.8),
    "wiki": (0.02, 2.1, 0.27, 1.4),
    "problems": (0.01, 1.4, 0.40, 1.7),
}
_ELASTICITY = 0.3  # nats per unit of ln n at the run's end, of a domain that is drawn at its share
_POLICIES: Mapping[str, JsonMapping] = {
    "natural": {},
    "uniform": {},
    "ado": {},
    "ado own counts": {"policy": "ado", "shared_count": False},
    "episelect": {},
    "gap": {},
    "aioli": {},
    "target": {},
}


def world(name: str, steps: int = STEPS) -> JsonObject:
    """The spec of the world called `name`, as `read_spec` takes it."""
    return _WORLDS[name](steps)


def _spec(steps: int, added: JsonMapping | None = None, share: float = 0.0, **more: object) -> JsonObject:
    domains: dict[str, dict[str, float]] = {}
    unlike = more.pop("unlike", False)
    for name, (size, eps, alpha, speed) in _WANTED.items():
        drawn = size * steps * BATCH
        beta = _ELASTICITY * (speed if unlike else 1.0) / alpha * drawn**alpha
        domains[name] = {"prior": (1.0 - share) * size, "eps": eps, "beta": beta, "alpha": alpha}
    if added is not None:
        domains["added"] = {"prior": share, **added}
    return {
        "steps": steps,
        "global_batch_size": BATCH,
        "seed": 17,
        "noise": 0.35,
        "domains": domains,
        "wanted": {name: size for name, (size, *_) in _WANTED.items()},
        "policies": dict(_POLICIES),
        **more,
    }


def _unlearnable(share: float, transfer: float = 0.0) -> _MakeSpec:
    flat = {"eps": 5.5, "beta": 1e-3, "alpha": 0.3}
    among = {learner: {teacher: transfer for teacher in _WANTED if teacher != learner} for learner in _WANTED}
    return lambda steps: _spec(steps, flat, share, **({"transfer": among} if transfer else {}))


def _learnt_out(share: float) -> _MakeSpec:
    """Half a nat above its floor after a fiftieth of its part of the run, and falling with exponent 2."""
    return lambda steps: _spec(
        steps, {"eps": 1.0, "beta": 0.5 * (share * steps * BATCH / 50) ** 2, "alpha": 2.0}, share
    )


def _repeated(share: float, part: float) -> _MakeSpec:
    """Read through after `part` of the run; 15 epochs are worth most of what fresh text would be."""

    def spec(steps: int) -> JsonObject:
        size = share * steps * BATCH
        law = {"eps": 2.0, "beta": _ELASTICITY / 0.3 * size**0.3, "alpha": 0.3, "samples": part * size}
        found = _spec(steps, law, share)
        del found["wanted"]  # the domain itself is wanted too, at its share
        for name in _WANTED:
            found["domains"][name]["samples"] = 2.0 * found["domains"][name]["prior"] * steps * BATCH
        return found

    return spec


_WORLDS: Mapping[str, _MakeSpec] = {
    "alike": lambda steps: _spec(steps),
    "unlike": lambda steps: _spec(steps, unlike=True),
    "unlearnable-10": _unlearnable(0.1),
    "unlearnable-20": _unlearnable(0.2),
    "unlearnable-40": _unlearnable(0.4),
    "unlearnable-20, transfer 0.1": _unlearnable(0.2, 0.1),
    "unlearnable-20, transfer 0.3": _unlearnable(0.2, 0.3),
    "learnt-out-20": _learnt_out(0.2),
    "repeated-20": _repeated(0.2, 0.1),
    "exhausted-20": _repeated(0.2, 0.01),
}
WORLDS = tuple(_WORLDS)

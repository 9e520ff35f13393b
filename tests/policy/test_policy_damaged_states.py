"""A state with one value damaged, and the checksum that a forger would write: refused as it is, or mixtures that work.

For every policy, bare and guarded. Oracle: the definition of a mixture, and the state before the refusal.
"""

import base64
import copy
import json

import numpy as np
import pytest

import ado_stream as ado
from ado_stream.policy import state_codec
from ado_stream.policy.guards import RepetitionGuard
from ado_stream.policy.operator_control import Control, parse_order
from ado_stream.policy.stage_mixtures import StageMixtures
from tests.policy.test_policy_conformance import NAMES, PRIOR, _policies, _sizes

FAST = ("natural", "schedule", "odm", "odm-code", "doremi", "aioli", "control released", "target")
REORDERED = ("ado", "target", "odm", "stages")  # of each way of reordering: laws, blocks, vectors, a wrapper's
SAVED_AT, UPDATES = 63, 50
MISSING = object()
VALUES = [
    None, True, -1, 0, 1 << 40, 1 << 70, 10**400, 1e308, float("nan"), float("inf"), "x", [], [1], [[1]], {"a": 1},
    MISSING,
]  # fmt: skip
NUMBERS = {"f": [-1, 0, 1, 1e-320, 1e99, -1e99, 1e300, np.nan, np.inf, -np.inf], "i": [-1, 0, 1 << 62, -(1 << 62)]}


def _cases(make_ado):
    def orders(policy, *texts):
        control = Control(policy)
        for text in texts:
            control.apply(parse_order(text.split(), NAMES))
        return control

    return {
        **_policies(make_ado),
        "target validation": lambda prior: ado.make_policy(
            "target", prior, laws="validation", ignore_steps=0, start_step=4, dead_zone=1.0, confidence=0.0
        ),
        "stages": lambda prior: StageMixtures(make_ado(prior), [(40, np.full(5, 0.2)), (90, None)], 2),
        "control": lambda prior: orders(
            RepetitionGuard(ado.make_policy("odm", prior), _sizes(prior), 20_000), "bound math=0.1:0.3", "freeze"
        ),
        "control released": lambda prior: orders(ado.make_policy("odm", prior)),
    }


TRIED = [
    pytest.param(case, names, id=case + (" in another order" if names else ""), marks=() if fast else pytest.mark.slow)
    for names in (None, NAMES[::-1])
    for case in (_cases(None) if names is None else REORDERED)
    for fast in [case in (FAST if names is None else ("odm",))]
]


@pytest.mark.parametrize(("case", "names"), TRIED)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numbers that overflow
def test_a_damaged_state_is_refused_or_gives_mixtures(case, names, loss_stream, make_ado):
    make = _cases(make_ado)[case]
    loss_TK, count_TK = loss_stream(len(NAMES), SAVED_AT + UPDATES)
    saved = make(PRIOR)
    _update(saved, loss_TK[:SAVED_AT], count_TK[:SAVED_AT])
    fresh = make({name: PRIOR[name] for name in names or NAMES})
    before = json.dumps(fresh.state_dict())
    num_refused = 0
    for damage, state in _damaged(json.loads(json.dumps(saved.state_dict()))):
        policy = copy.deepcopy(fresh)
        refusal = _refusal(policy, _sealed(state), names)
        if refusal:
            num_refused += 1
            assert refusal.startswith("policy state: "), damage
            assert refusal.count("\n") < 3, damage
            assert json.dumps(policy.state_dict()) == before, damage
        else:
            mixture_TK = _update(policy, loss_TK[SAVED_AT:], count_TK[SAVED_AT:])
            assert np.isfinite(mixture_TK).all(), damage
            assert (mixture_TK >= 0.0).all(), damage
            assert np.abs(mixture_TK.sum(axis=1) - 1.0).max() < 1e-6, damage  # what the stream takes as a mixture
            json.dumps(policy.health(), allow_nan=False)
    assert num_refused > 100


def _refusal(policy, state, names):
    try:
        policy.load_state_dict(state, names)
    except ado.ResumeError as error:
        return str(error)
    return None


def _update(policy, loss_TK, count_TK):
    mixtures = [policy.mixture]
    for loss_K, count_K in zip(loss_TK, count_TK, strict=True):
        mixtures.append(policy.update(loss_K, count_K))
        policy.observe_validation(1.01 * loss_K, count_K)
    return np.array(mixtures)


def _damaged(state, place=""):
    """(what was done, the state) for each value of it, at any depth, replaced by each other."""
    for key, value in state.items():
        where = f"{place}/{key}"
        for other in VALUES:
            yield (
                f"{where}: {other!r:.20}",
                {k: v for k, v in state.items() if k != key} | ({} if other is MISSING else {key: other}),
            )
        others = []
        if isinstance(value, list):
            others = [("cut", value[:-1]), ("longer", value + value[-1:]), ("turned", value[::-1])]
        elif isinstance(value, dict):
            others = _damaged_arrays(value) if "base64" in value else _damaged(value, where)
        for what, other in others:
            yield f"{where} {what}", state | {key: other}
    yield f"{place}: a key more", state | {"zz": 1}


def _damaged_arrays(packed):
    array = np.frombuffer(base64.b64decode(packed["base64"]), packed["dtype"]).reshape(packed["shape"])
    for dtype in {"<f8", "<i8", "|b1"} - {packed["dtype"]}:
        yield dtype, state_codec.pack(np.nan_to_num(array).astype(dtype))
    for shape in ([], [-1, 1], [1 << 62], [1 << 70], ["5"], [None], 5, "5"):
        yield f"shape {shape}", packed | {"shape": shape}
    for dtype in ("|O", "<f4", "x", None, ["<f8"]):
        yield f"dtype {dtype}", packed | {"dtype": dtype}
    for text in (packed["base64"][:-4], packed["base64"][:-1], "", "@@@", "\ud800", 1):
        yield f"base64 {text!r:.20}", packed | {"base64": text}
    for what, other in (("cut", array[:-1]), ("longer", np.concatenate([array, array])), ("nested", array[None])):
        yield what, state_codec.pack(other)
    for number in NUMBERS.get(array.dtype.kind, ()):
        for what, place in (("first", (0,) * array.ndim), ("last", -1), ("all", ...)):
            other = array.copy()
            if other.size:
                other[place] = number
            yield f"{what} {number}", state_codec.pack(other)
    if array.dtype.kind == "f" and array.size:
        yield "all in one", state_codec.pack(np.eye(1, array.size).reshape(array.shape))


def _sealed(value):
    """With the checksums of what it holds, at every depth where there was one."""
    if not isinstance(value, dict):
        return value
    content = {key: _sealed(item) for key, item in value.items() if key != "crc32"}
    try:
        return content | {"crc32": state_codec._crc32(content)} if "crc32" in value else content
    except (TypeError, ValueError):  # a value that has none
        return value

"""Operator's orders to a running job: files in RUN/control/, read by rank 0 before every update of the policy.

An order is a file, its answer another one beside it, each written whole or not at all. The answer holds n, the update
that the order came into force with: the mixture after it is drawn by all ranks at step n + 1 + mixture_lag, as any
other. Invariant: the answer is written before that update, and a run that resumes before n takes the order at n again,
so it equals a run that was not interrupted.
"""

import json
import os
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict, TypeVar

from ado_stream.durable import disk_errors, write_durably
from ado_stream.errors import AdoStreamError, ConfigError, DataError
from ado_stream.json_files import decode_json
from ado_stream.policy.operator_control import in_control, parse_order
from ado_stream.regular_files import read_regular
from ado_stream.value_types import JsonObject

if TYPE_CHECKING:
    from ado_stream.loader import AdaptiveLoader

FOLDER = "control"
_ORDER, _ANSWER = ".order.json", ".answer.json"
_POLL_S = 0.05
T = TypeVar("T")


class _OrderFile(TypedDict):
    words: list[str]


class Answer(TypedDict):
    """What the run made of an order: in force from the update `step` on and drawn from `drawn_from` on, or refused."""

    step: NotRequired[int]
    drawn_from: NotRequired[int]
    refused: NotRequired[str]


def submit(run_dir: Path, words: Sequence[str]) -> Path:
    """Writes an order into the run's folder; its file."""
    # named by time: orders are taken in the order in which they were given
    path = run_dir / FOLDER / f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}{_ORDER}"
    with disk_errors(path):
        write_durably(path, json.dumps({"words": list(words)}))
    return path


def list_orders(run_dir: Path) -> list[Path]:
    """The files of all orders, the first given first."""
    folder = run_dir / FOLDER
    with disk_errors(folder):
        try:
            names = os.listdir(folder)
        except FileNotFoundError:
            return []
    return [folder / name for name in sorted(names) if name.endswith(_ORDER)]


def read_words(path: Path) -> list[str]:
    """The words of an order. Raises DataError."""
    words = _read(path, _OrderFile)["words"]
    if not words:
        raise DataError(f"{path}: no words.")
    return words


def read_answer(path: Path) -> Answer | None:
    """The answer to the order in `path`; None while there is none. Raises DataError."""
    place = _answer_path(path)
    if not place.exists():
        return None
    answer = _read(place, Answer)
    if "refused" not in answer and not answer.keys() >= {"step", "drawn_from"}:
        raise DataError(f"{place}: neither a refusal nor a step.")
    return answer


def wait_for_answer(path: Path, timeout_s: float) -> Answer | None:
    """The answer to the order in `path`; None when there was none within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while (answer := read_answer(path)) is None and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return answer


def _read(path: Path, kind: type[T]) -> T:
    try:
        return decode_json(read_regular(path), kind, str(path), DataError)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None


def _answer_path(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(_ORDER) + _ANSWER)


class RunControl:
    """Takes orders to the policy of `loader`, which the first one puts into a Control.

    on_order(step, detail): called once for each order that is in force from the update `step` on.
    """

    def __init__(self, run_dir: Path, loader: "AdaptiveLoader", on_order: Callable[[int, JsonObject], None]):
        self._run_dir, self._loader, self._on_order = run_dir, loader, on_order
        self._answered: set[Path] = set()

    def repeat(self) -> None:
        """Applies again the orders that an earlier attempt applied at the policy's present step or later."""
        for path in list_orders(self._run_dir):
            answer = read_answer(path)
            if answer is None:
                continue
            self._answered.add(path)
            if "step" in answer and answer["step"] >= self._loader.policy.step:
                self._take(path, answer["step"])

    def read(self) -> None:
        """Takes the orders that were given since the last call, and answers them."""
        for path in self._unanswered():
            control, step = in_control(self._loader.policy), self._loader.policy.step
            try:
                control.check(parse_order(read_words(path), control.labels))
            except AdoStreamError as error:
                self._answer(path, {"refused": str(error)})
            else:
                # The answer first: after a kill in between, `repeat` finds the step at which to apply the order.
                self._answer(path, {"step": step, "drawn_from": self._drawn_from(step)})
                self._take(path, step)

    def refuse(self, reason: str) -> None:
        """Answers the orders that came too late."""
        for path in self._unanswered():
            self._answer(path, {"refused": reason})

    def _unanswered(self) -> list[Path]:
        return [path for path in list_orders(self._run_dir) if path not in self._answered]

    def _take(self, path: Path, step: int) -> None:
        control, words = in_control(self._loader.policy), read_words(path)
        try:
            control.apply(parse_order(words, control.labels), step)
        except ConfigError as error:  # of an order that was possible: the domains are others
            raise ConfigError(f"{path}: taken at step {step} before, but now: {error}\n  Remove that file.") from None
        self._loader.policy = control
        self._on_order(step, {"order": " ".join(words), "drawn_from": self._drawn_from(step)})

    def _drawn_from(self, step: int) -> int:
        return step + 1 + (self._loader.dataset.mixture_lag or 0)

    def _answer(self, path: Path, answer: Answer) -> None:
        with disk_errors(path):
            write_durably(_answer_path(path), json.dumps(answer))
        self._answered.add(path)

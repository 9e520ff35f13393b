"""What one process posts another collects: whole, in any order, and never for a step that is drawn already."""

import os

import numpy as np
import pytest

from ado_stream.errors import ConfigError, PolicyError
from ado_stream.stream import shared_mixtures
from ado_stream.stream.shared_mixtures import SharedMixtures

NUM_SLOTS = shared_mixtures._NUM_SLOTS


def mixture(number: int) -> np.ndarray:
    return np.array([number, number + 1.0, -number])


@pytest.fixture
def mixtures():
    return SharedMixtures(3)


@pytest.fixture
def as_fork(monkeypatch):
    """Runs a call as if in a fork, which has the same memory."""
    here = os.getpid()

    def call(method, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(shared_mixtures.os, "getpid", lambda: here + 1)
            result = method(*arguments)
            return list(result) if method.__name__ == "collect" else result

    return call


def collected(mixtures: SharedMixtures, first: int) -> dict[int, list[float]]:
    return {step: mixture_K.tolist() for step, mixture_K in mixtures.collect(first)}


def test_what_is_posted_is_collected_from_a_step_on(mixtures):
    for step in (2, 0, 1):
        mixtures.post(step, mixture(step))
    assert collected(mixtures, 1) == {1: mixture(1).tolist(), 2: mixture(2).tolist()}
    assert collected(mixtures, 1) == {}  # nothing new
    mixtures.post(3, mixture(3))
    assert collected(mixtures, 3) == {3: mixture(3).tolist()}


def test_the_first_and_the_last_slot_hold_a_mixture_each(mixtures):
    for step in range(NUM_SLOTS):
        mixtures.post(step, mixture(step))
    found = collected(mixtures, 0)
    assert found == {step: mixture(step).tolist() for step in range(NUM_SLOTS)}


def test_a_drawn_step_takes_its_own_mixture_alone(mixtures, as_fork):
    mixtures.post(4, mixture(4))
    as_fork(mixtures.open)
    as_fork(mixtures.collect, 5)
    mixtures.post(4, mixture(4))
    with pytest.raises(PolicyError, match=r"publish\(4, \.\.\.\): the DataLoader's worker has drawn steps up to 4\."):
        mixtures.post(4, mixture(5))
    mixtures.post(5, mixture(5))
    mixtures.post(5, mixture(6))  # not drawn yet
    assert [step for step, _ in as_fork(mixtures.collect, 5)] == [5]


def test_a_mixture_that_the_reader_has_not_taken_is_kept(mixtures, as_fork):
    as_fork(mixtures.open)
    as_fork(mixtures.collect, 7)
    for step in range(7, 7 + NUM_SLOTS):
        mixtures.post(step, mixture(step))
    with pytest.raises(PolicyError, match=rf"is at step 7; publish at most {NUM_SLOTS} ahead"):
        mixtures.post(7 + NUM_SLOTS, mixture(0))
    as_fork(mixtures.collect, 8)
    mixtures.post(7 + NUM_SLOTS, mixture(0))


def test_without_another_reader_any_step_is_taken(mixtures):
    mixtures.open()
    mixtures.post(4, mixture(4))
    assert collected(mixtures, 5) == {}
    mixtures.post(4, mixture(5))
    mixtures.post(5, mixture(5))
    mixtures.post(5 + NUM_SLOTS, mixture(6))
    assert collected(mixtures, 5) == {5 + NUM_SLOTS: mixture(6).tolist()}


def test_half_a_mixture_is_not_taken(mixtures):
    mixtures.post(0, mixture(0))
    mixtures._version_S[0] += 1  # as while the next is written
    assert collected(mixtures, 0) == {}
    mixtures._version_S[0] += 1
    mixtures._head[2] += 1
    assert collected(mixtures, 0) == {0: mixture(0).tolist()}


def test_a_mixture_that_changes_while_it_is_taken_is_not_taken(mixtures):
    mixtures.post(0, mixture(0))

    class Changing:
        def __getitem__(self, slot):
            mixtures._version_S[slot] += 2
            return mixture(0)

    kept, mixtures._mixture_SK = mixtures._mixture_SK, Changing()
    mixtures._head[2] += 1
    assert collected(mixtures, 0) == {}
    mixtures._mixture_SK = kept


def test_the_reader_is_one_process_until_it_closes(mixtures, as_fork):
    assert not mixtures.is_read_here
    assert not mixtures.is_read_elsewhere
    mixtures.open()
    assert mixtures.is_read_here
    assert not mixtures.is_read_elsewhere
    assert as_fork(lambda: mixtures.is_read_elsewhere)
    as_fork(mixtures.close)  # of another process: no effect
    assert mixtures.is_read_here
    mixtures.close()
    assert not mixtures.is_read_here
    mixtures.open()  # the same process again


def test_a_second_pass_after_a_forks_is_refused_until_it_is_cleared(mixtures, as_fork):
    as_fork(mixtures.open)
    as_fork(mixtures.collect, 3)
    as_fork(mixtures.close)
    with pytest.raises(ConfigError, match="a DataLoader's worker has read this data set before"):
        mixtures.open()
    mixtures.clear()
    mixtures.open()
    assert collected(mixtures, 0) == {}
    mixtures.post(0, mixture(0))
    assert collected(mixtures, 0) == {0: mixture(0).tolist()}

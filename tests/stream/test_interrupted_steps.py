"""A stream that is interrupted at any moment of a step, or whose pass meets an error, goes on exactly."""

import itertools
import sys
import threading

import pytest
import torch

import ado_stream as ado
from ado_stream import loader as loader_module
from ado_stream import reduction
from ado_stream.policy import base_policy, odm
from ado_stream.stream import batch_pipeline, dataset
from tests.stream.helpers import ledger, run

STEPS = 6


def make(corpus, **changes):
    return ado.AdaptiveStreamingDataset(corpus, **{"global_batch_size": 24, "seed": 5, "mixture_lag": None, **changes})


def rest(stream):
    """What is left of STEPS batches."""
    return ledger(itertools.islice(stream, STEPS - stream.step))


@pytest.fixture(scope="module")
def whole(corpus):
    stream = make(corpus)
    yield rest(stream)
    stream.close()


class Interrupt:
    """Raises KeyboardInterrupt before instruction number `at` of a module's functions, as a signal may."""

    def __init__(self, module, at):
        self.file, self.left = module.__file__, at

    def __call__(self, frame, event, arg):
        if frame.f_code.co_filename != self.file:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self

    def run(self, call):
        """Whether `call` was interrupted."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            call()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
        return False


@pytest.mark.parametrize(
    ("prefetch", "module", "every"),
    [(0, dataset, 3), pytest.param(2, dataset, 1, marks=pytest.mark.slow), (0, batch_pipeline, 9)],
)
def test_an_interrupt_at_any_instruction_neither_loses_nor_repeats_a_sample(corpus, whole, prefetch, module, every):
    for at in itertools.count(1, every):
        stream = make(corpus)
        stream.start(prefetch, io_threads=0)
        got = ledger([stream.next_batch(), stream.next_batch()])
        interrupted = Interrupt(module, at).run(lambda: got.extend(ledger([stream.next_batch()])))  # noqa: B023
        assert stream.step in (2, 3)
        resumed = make(corpus)
        resumed.load_state_dict(stream.state_dict())
        num_left = (STEPS - stream.step) * 24
        assert rest(resumed) == rest(stream) == whole[-num_left:]
        stream.close()
        resumed.close()
        if not interrupted:
            assert at > every
            return


def learn(loader):
    """One step with losses that follow from its number."""
    step = next(iter(loader))["step"]
    counts = torch.from_numpy(loader.dataset.sample_counts(step).astype(float))
    return lambda: loader.observe(counts * (3.0 + torch.arange(len(counts)) / (1 + step)), counts)


@pytest.mark.parametrize(
    ("module", "every"),
    [
        (loader_module, 5),
        pytest.param(loader_module, 1, marks=pytest.mark.slow),
        (reduction, 9),
        (odm, 9),
        (base_policy, 9),
    ],
)
def test_an_interrupt_of_a_policys_update_is_harmless_or_refused(corpus, module, every):
    """What is refused goes on after a load of the state before."""
    with ado.AdaptiveLoader(make(corpus, mixture_lag=1), "odm", prefetch=0) as loader:
        for _ in range(STEPS):
            learn(loader)()
        expected, outcomes = loader.state_dict(), set()
    for at in itertools.count(1, every):
        with ado.AdaptiveLoader(make(corpus, mixture_lag=1), "odm", prefetch=0) as loader:
            for _ in range(3):
                learn(loader)()
            before = loader.state_dict()
            interrupted = Interrupt(module, at).run(learn(loader))
            try:
                observed = loader.state_dict()["observed"]
            except ado.PolicyError as error:
                assert "interrupt" in str(error)  # noqa: PT017
                with pytest.raises(ado.PolicyError, match="interrupt"):
                    learn(loader)()
                loader.load_state_dict(before)
                observed = "refused"
            if observed == 3:  # it fell before anything was done: a step that is not observed is an error later
                loader.load_state_dict(before)
            while loader.step < STEPS:
                learn(loader)()
            assert loader.state_dict() == expected
        outcomes.add(observed)
        if not interrupted:
            assert "refused" in outcomes
            return


def test_a_state_that_another_thread_saves_is_of_one_step(corpus):
    stream = make(corpus)
    states, done = [], threading.Event()

    def save():
        while not done.is_set():
            states.append(stream.state_dict())

    switch_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=save)
    thread.start()
    try:
        run(stream, 40, mixture=None)
    finally:
        done.set()
        thread.join()
        sys.setswitchinterval(switch_s)
    for state in states:
        assert sum(sum(each["cursors"]) for each in state["domains"].values()) == 24 * state["step"]


def test_a_pass_goes_on_after_an_error(corpus, monkeypatch, whole):
    def fail(*_):
        raise ado.Throttled("of the store")

    for stream in (make(corpus), ado.AdaptiveLoader(make(corpus), prefetch=0)):
        batches = iter(stream)
        got = [next(batches)]
        for name in ("draw_step", "make_rows"):
            with monkeypatch.context() as patch:
                patch.setattr(batch_pipeline if name == "draw_step" else dataset, name, fail)
                with pytest.raises(ado.Throttled):
                    got.extend(itertools.islice(batches, 4))  # those made ahead come first
        got.extend(itertools.islice(batches, STEPS - len(got)))
        assert ledger(got) == whole
        stream.close()


def test_a_state_loaded_inside_the_loop_goes_on_there(corpus, whole):
    stream = make(corpus)
    state, steps, got = stream.state_dict(), [], []
    for batch in stream:
        got.append(batch)
        steps.append(batch["step"])
        if len(steps) == 2:
            stream.load_state_dict(state)
            got.clear()
        if batch["step"] == STEPS - 1:
            stream.close()
    assert steps == [0, 1, *range(STEPS)]
    assert ledger(got) == whole

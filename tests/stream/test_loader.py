"""The loader: losses in, mixtures out, at the stated delay; exact over resumes and ranks."""

import contextlib
import hashlib
import itertools
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

import ado_stream as ado
from ado_stream import reduction as reduction_module
from ado_stream.reduction import LossReduction
from ado_stream.stream import batch_pipeline
from ado_stream.stream.device_copies import DeviceCopies
from tests.stream.helpers import ledger


class Follows:
    """A policy that remembers everything it was told and answers with something that depends on all of it."""

    def __init__(self, num_domains=5):
        self.told = []
        self.mixture = np.full(num_domains, 1 / num_domains)

    def update(self, mean_losses, sample_counts):
        self.told.append((np.array(mean_losses), np.array(sample_counts)))
        weight = 0.7 * self.mixture + np.nan_to_num(mean_losses, nan=0.1) * 1e-4 + 0.01 * (sample_counts % 3)
        self.mixture = weight / weight.sum()
        return self.mixture

    def state_dict(self):
        return {"mixture": self.mixture.tolist(), "told": len(self.told)}

    def load_state_dict(self, state, names=None):
        self.mixture = np.array(state["mixture"])


def make(corpus, policy=None, **changes):
    dataset = ado.AdaptiveStreamingDataset(corpus, global_batch_size=24, seed=5, canonical_nodes=2, **changes)
    return ado.AdaptiveLoader(dataset, policy=policy or Follows(), prefetch=3)


def losses(batch, num_domains=5):
    """(loss sums, token counts) per domain: a row's loss is its mean token, exact in float64."""
    row = batch["tokens"].double().sum(1)
    sums = torch.zeros(num_domains, dtype=torch.float64).index_add_(0, batch["domain"], row)
    counts = torch.bincount(batch["domain"], minlength=num_domains) * batch["tokens"].shape[1]
    return sums, counts


def train(loader, steps):
    batches, mixtures = [], []
    for batch in loader:
        loader.observe(*losses(batch))
        batches.append(batch)
        mixtures.append(loader.mixture.tobytes())
        if len(batches) == steps:
            return ledger(batches), mixtures
    raise AssertionError("the stream ended")


def test_the_policy_gets_global_means_and_its_answer_comes_after_the_lag(corpus):
    policy = Follows()
    with make(corpus, policy, mixture_lag=4) as loader:
        answers = []
        for batch in loader:
            step = batch["step"]
            sums, counts = losses(batch)
            loader.observe(sums, counts)
            told, samples = policy.told[-1]
            absent = counts.numpy() == 0
            assert np.isnan(told[absent]).all()
            assert told[~absent] == pytest.approx((sums / counts).numpy()[~absent], rel=1e-15)
            assert np.array_equal(samples, loader.dataset.sample_counts(step))
            answers.append(policy.mixture.copy())
            expected = answers[step - 5] if step >= 5 else loader.dataset.prior
            assert np.array_equal(loader.mixture, expected)
            assert np.array_equal(loader.dataset.mixture(step), expected)
            if step == 30:
                break


def test_saved_and_loaded_at_any_step_it_goes_on_exactly(corpus):
    with make(corpus) as loader:
        entries, mixtures = train(loader, 60)
    for stop in (1, 9, 25):
        first = make(corpus)
        train(first, stop)
        state = json.loads(json.dumps(first.state_dict()))
        first.close()
        second = make(corpus)
        second.load_state_dict(state)
        again, their = train(second, 60 - stop)
        second.close()
        assert again == entries[stop * 24 :]
        assert their == mixtures[stop:]


def test_a_state_with_a_policy_is_not_loaded_without_one(corpus):
    with make(corpus) as loader:
        state = loader.state_dict()
    without = ado.AdaptiveLoader(ado.AdaptiveStreamingDataset(corpus, global_batch_size=24, seed=5, canonical_nodes=2))
    with pytest.raises(ado.ResumeError, match="saved with a policy, but this loader was made without one"):
        without.load_state_dict(state)
    with make(corpus) as loader, pytest.raises(ado.ResumeError, match="saved without a policy, but .* made with one"):
        loader.load_state_dict(without.state_dict())


def test_forgetting_observe_names_the_call_and_the_step(corpus):
    with (
        make(corpus, mixture_lag=4) as loader,
        pytest.raises(ado.PolicyError, match=r"loader.observe\(\) .* step 0; step 5"),
    ):
        for _ in loader:
            pass


def test_observing_twice_or_in_the_wrong_shape_is_an_error(corpus):
    with make(corpus) as loader:
        batch = next(iter(loader))
        with pytest.raises(ado.PolicyError, match=r"shape \(4,\); expected \(5,\)"):
            loader.observe(torch.zeros(4), torch.zeros(4))
    with make(corpus) as loader:
        batch = next(iter(loader))
        loader.observe(*losses(batch))
        with pytest.raises(ado.PolicyError, match="step 1 was not yielded"):
            loader.observe(*losses(batch))


def test_numbers_that_are_reduced_already_are_taken_as_they_are():
    """Others are added over ranks, here one, and divided by how many of them were given the same rows."""
    reduction = LossReduction(["a", "b"], replication=2, timeout_s=1.0)
    sums, counts = torch.tensor([4.0, 6.0]), torch.tensor([2, 2])
    reduction.push(0, sums, counts)
    ((step, sum_K, count_K),) = reduction.ready()
    assert (step, sum_K.tolist(), count_K.tolist()) == (0, [2.0, 3.0], [1.0, 1.0])
    reduction.push(1, sums, counts, reduced=True)
    ((step, sum_K, count_K),) = reduction.ready()
    assert (step, sum_K.tolist(), count_K.tolist()) == (1, [4.0, 6.0], [2.0, 2.0])


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True


def test_what_a_gpu_computes_is_read_one_step_later(monkeypatch):
    """Reading a step's numbers at once would wait for the device in every step."""
    read = []

    def to_host_later(value):
        return lambda: read.append(value) or value.as_subclass(torch.Tensor).numpy()

    monkeypatch.setattr(reduction_module, "to_host_later", to_host_later)
    reduction = LossReduction(["a"], replication=1, timeout_s=1.0)
    ones = torch.ones(1, dtype=torch.float64).as_subclass(OnGpu)
    reduction.push(0, ones, ones, reduced=True)
    assert list(reduction.ready()) == read == []
    reduction.push(1, 2 * ones, ones, reduced=True)
    ((step, sum_K, _),) = reduction.ready()
    assert (step, sum_K.tolist(), len(read)) == (0, [1.0], 1)
    ((step, sum_K, _),) = reduction.ready(all_steps=True)
    assert (step, sum_K.tolist()) == (1, [2.0])


def test_losses_on_a_gpu_that_is_not_the_current_one_are_waited_for_on_its_stream(monkeypatch):
    """Otherwise the host would read memory that the copy has not written. GPUs and their streams are stand-ins."""
    said = []

    class Event:
        def record(self, stream):
            said.append(f"event on the stream of {stream}")

        def synchronize(self):
            said.append("waited")

    class OnOtherGpu(torch.Tensor):
        is_cuda = True
        device = torch.device("cuda:1")

    def empty(*arguments, pin_memory, **options):
        assert pin_memory
        return real_empty(*arguments, **options)

    real_empty = torch.empty
    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: device)
    read = reduction_module.to_host_later(torch.ones(3, dtype=torch.float64).as_subclass(OnOtherGpu))
    assert said == ["event on the stream of cuda:1"]
    assert read().tolist() == [1.0, 1.0, 1.0]
    assert said[1:] == ["waited"]


@pytest.mark.parametrize("pin_memory", [False, True])
def test_another_default_device_changes_nothing(corpus, pin_memory, monkeypatch, process_group):
    """Batches, sums over ranks and broadcast mixtures stay on the CPU; no memory can be page-locked here."""
    real_empty = torch.empty

    def empty(*arguments, pin_memory=False, **options):
        return real_empty(*arguments, **options)

    monkeypatch.setattr(torch, "empty", empty)

    def first_steps():
        dataset = ado.AdaptiveStreamingDataset(corpus, global_batch_size=24, mixture_lag=2, rank=0, world_size=1)
        with ado.AdaptiveLoader(dataset, Follows(), prefetch=0, pin_memory=pin_memory) as loader:
            return train(loader, 8)

    expected = first_steps()
    monkeypatch.setattr(sys.modules[__name__], "losses", on_cpu(losses))
    torch.set_default_device("meta")
    try:
        assert first_steps() == expected
    finally:
        torch.set_default_device(None)


def on_cpu(function):
    def called(*arguments):
        with torch.device("cpu"):
            return function(*arguments)

    return called


def test_a_batch_is_used_only_once_its_copy_is_there(monkeypatch):
    """Streams and tensors are stand-ins that write down what is asked of them."""
    said = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            said.append(f"{self.name} waits for {other.name}")

    class Value:
        def to(self, device, non_blocking):
            said.append(f"copied on {running[-1]}, non_blocking={non_blocking}")
            return self

        def record_stream(self, stream):
            said.append(f"held for {stream.name}")

    @contextlib.contextmanager
    def on(stream):
        running.append(stream.name)
        yield
        running.pop()

    running = ["compute"]
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("copies"))
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("compute"))
    copies = DeviceCopies(torch.device("cuda"), pinned=True)
    batch = copies.begin({"tokens": Value(), "domain": Value(), "step": 3})
    assert said == ["copied on copies, non_blocking=True"] * 2
    copies.end(batch)
    assert said[2:] == ["compute waits for copies", "held for compute", "held for compute"]


@pytest.mark.parametrize("prefetch", [0, 2])
def test_with_page_locked_memory_both_tensors_of_a_batch_lie_in_it(corpus, prefetch, monkeypatch):
    """In storages that torch's allocator gave out: it does not wait for copies of another storage's row slices.

    Without a GPU nothing can be page-locked; ordinary tensors are handed out in its stead.
    """
    locked = []

    def stand_in(shape):
        locked.append(torch.empty(shape, dtype=torch.int64))
        return locked[-1]

    monkeypatch.setattr(batch_pipeline, "_pinned", stand_in)
    dataset = ado.AdaptiveStreamingDataset(corpus, global_batch_size=24, mixture_lag=None)
    with ado.AdaptiveLoader(dataset, prefetch=prefetch, pin_memory=True) as loader:
        batch = next(iter(loader))
        storages = [tensor.untyped_storage()._cdata for tensor in locked]
        assert all(batch[key].untyped_storage()._cdata in storages for key in ("tokens", "domain"))


def test_batches_come_on_the_device_that_is_asked_for(corpus):
    dataset = ado.AdaptiveStreamingDataset(corpus, global_batch_size=24, mixture_lag=None)
    with ado.AdaptiveLoader(dataset, prefetch=0, device="meta") as loader:
        batch = next(iter(loader))
        assert {batch[key].device.type for key in ("tokens", "domain")} == {"meta"}


@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_copying_one_batch_ahead_changes_no_batch_and_no_state(corpus, prefetch):
    """The batch on its way to the device was not handed out: a state taken meanwhile begins with it."""

    def rows_and_states(device):
        dataset = ado.AdaptiveStreamingDataset(corpus, global_batch_size=24, mixture_lag=None)
        loader = ado.AdaptiveLoader(dataset, prefetch=prefetch, device=device)
        seen = []
        for batch in itertools.islice(loader, 12):
            time.sleep(0.01)  # so that the next one is ready
            state = dataset.state_dict()
            del state["mixtures"], state["mixture_steps"]  # of steps made ahead, however many those are at the moment
            seen.append((batch["step"], plain_rows(batch), state))
            if batch["step"] == 5:
                loader.close()  # and goes on with step 6, whatever was ahead
        loader.close()
        return seen

    assert rows_and_states("cpu") == rows_and_states(None)


def test_a_lag_below_the_prefetch_depth_is_refused(corpus):
    dataset = ado.AdaptiveStreamingDataset(corpus, global_batch_size=24, mixture_lag=2)
    with pytest.raises(ado.ConfigError, match="mixture_lag 2 is less than prefetch 4"):
        ado.AdaptiveLoader(dataset, policy=Follows())
    with pytest.raises(ado.ConfigError, match="the policy has 4 domains, the data set 5"):
        ado.AdaptiveLoader(ado.AdaptiveStreamingDataset(corpus, global_batch_size=24), policy=Follows(4))


def fingerprint(step, mixture, rows):
    """One line for a step's global batch and mixture, the same however many ranks made it."""
    digest = hashlib.sha1(json.dumps(rows).encode()).hexdigest()
    return f"{step} {mixture.tobytes().hex()} {digest}"


def plain_rows(batch):
    return [(int(domain), row.tolist()) for domain, row in zip(batch["domain"], batch["tokens"], strict=True)]


def read_and_observe(domains) -> list:
    """(step, mixture, rows) of 40 steps."""
    steps = []
    with make(domains) as loader:
        for batch in itertools.islice(loader, 40):
            loader.observe(*losses(batch))
            steps.append((batch["step"], loader.mixture, plain_rows(batch)))
    return steps


def fingerprints_on_a_rank(domains, out: str) -> None:
    """Rank 0 writes the fingerprints of the global batches."""
    dist.init_process_group("gloo")
    gathered = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, read_and_observe(domains))
    if dist.get_rank() == 0:
        lines = []
        for parts in zip(*gathered, strict=True):
            assert len({mixture.tobytes() for _, mixture, _ in parts}) == 1, "mixtures differ between ranks"
            lines.append(fingerprint(*parts[0][:2], [row for part in parts for row in part[2]]))
        Path(out).write_text("\n".join(lines))
    dist.destroy_process_group()


@pytest.mark.parametrize("num_ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_agree_to_the_bit_and_read_one_global_batch(corpus, children, tmp_path, num_ranks):
    """Sums of these losses are whole numbers, exact in any order: so any number of ranks agrees to the bit."""
    expected = [fingerprint(*each) for each in read_and_observe(corpus)]
    children.run(fingerprints_on_a_rank, corpus, str(tmp_path / "out"), num_ranks=num_ranks)
    assert (tmp_path / "out").read_text().splitlines() == expected


@pytest.mark.parametrize("lag", [8, 3])
def test_a_state_saved_between_a_batch_and_its_observe_continues(corpus, lag):
    """As a run whose losses of that batch were not finite; also saved once more before the next batch."""
    nothing = torch.full((5,), float("nan"))

    def steps(loader, observed):
        entries = []
        for batch, known in zip(loader, observed, strict=False):
            sums, counts = losses(batch)
            entries.append((batch["tokens"].tolist(), loader.mixture.tolist()))
            if known is None:
                break
            loader.observe(sums if known else nothing, counts)
        return entries

    with make(corpus, mixture_lag=lag) as whole:
        expected = steps(whole, [True] * 6 + [False] + [True] * 20 + [None])
    with make(corpus, mixture_lag=lag) as first:
        found = steps(first, [True] * 6 + [None])
        state = json.loads(json.dumps(first.state_dict()))
    assert state["observed"] == 6
    assert state["stream"]["step"] == 7
    for saves_again in (False, True):
        with make(corpus, mixture_lag=lag, timeout_s=20.0) as second:  # or it would wait for long for that mixture
            second.load_state_dict(state)
            if saves_again:
                state = json.loads(json.dumps(second.state_dict()))
            rest = steps(second, [True] * 20 + [None])
        assert found + rest == expected
    state["observed"] = 6
    with make(corpus, mixture_lag=lag) as third, pytest.raises(ado.ResumeError, match="before .* step 6"):
        third.load_state_dict(state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_too_narrow_for_a_batch_are_refused(dtype):
    """In float16 100,000 nats are infinite, which policies ignore; in bfloat16 257 tokens are 256."""
    reduction = LossReduction(["a"], replication=1, timeout_s=1.0)
    for numbers in ((torch.ones(1, dtype=dtype), torch.ones(1)), (torch.ones(1), torch.ones(1, dtype=dtype))):
        with pytest.raises(ado.PolicyError, match=f"is a tensor of {dtype}, too narrow for a sum over a batch"):
            reduction.push(0, *numbers)


def test_numbers_that_are_no_tensors_are_float64_whatever_torch_s_default():
    reduction = LossReduction(["a"], replication=1, timeout_s=1.0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        reduction.push(0, [1e9 + 0.5], [float(2**24 + 1)])
    finally:
        torch.set_default_dtype(before)
    (found,) = reduction.ready()
    assert (found.sum_K.tolist(), found.count_K.tolist()) == ([1e9 + 0.5], [2**24 + 1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state.update(observed=7), "'observed' is 7 at step 6"),
        (lambda state: state["stream"]["mixtures"].pop("8"), "the mixture of step 8 is missing"),
        (lambda state: state["stream"]["mixtures"].clear(), "the mixture of step 6 is missing"),
        (lambda state: state["stream"]["domains"]["d1"].update(samples="x"), "domain 'd1' has 'x' samples"),
        (lambda state: state["stream"]["identity"].update(global_batch_size=-1), "'global_batch_size' is -1"),
        (lambda state: state["stream"]["identity"].update(batch_seq_len=[1]), r"'batch_seq_len' is \[1\]"),
    ],
)
def test_a_state_that_no_loader_saves_is_refused(corpus, damage, message):
    with make(corpus, mixture_lag=3) as first:
        train(first, 6)
        state = json.loads(json.dumps(first.state_dict()))
    damage(state)
    with make(corpus, mixture_lag=3) as second, pytest.raises(ado.ResumeError, match=message):
        second.load_state_dict(state)

"""Wrong arguments of the public face: one typed line, nothing changed, and the corrected call goes on."""

import contextlib
import copy
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import ado_stream as ado
from ado_stream import reduction as reduction_module
from ado_stream.corpus import Corpus
from ado_stream.policy.policy_registry import GUARDS, POLICIES
from ado_stream.reduction import LossReduction
from ado_stream.stream import batch_pipeline
from tests.mds_writer import MDSWriter
from tests.stream.helpers import SAMPLES, SEQ_LEN
from tests.stream.test_loader import losses

K = len(SAMPLES)
FEW = settings(max_examples=20)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.floats(),
    st.text(max_size=3),
    st.binary(max_size=2),
    st.just(np.int64(8)),
    st.just(np.float32(0.5)),
    st.just(Path("some/where")),
    st.sampled_from(["4", "ado", "cuda", "cpu", object(), int, print, 3j]),
)
JUNK = st.one_of(SCALARS, st.lists(SCALARS, max_size=2), st.dictionaries(st.text(max_size=2), SCALARS, max_size=2))


def one_line(error):
    text = str(error)
    assert 0 < len(text) < 700
    assert len(text.splitlines()) <= 3, text


def make(corpus, policy="odm", **changes):
    dataset = ado.AdaptiveStreamingDataset(corpus, global_batch_size=8, mixture_lag=3)
    return ado.AdaptiveLoader(dataset, policy, prefetch=0, **changes)


WRONG_SUMS = st.one_of(
    JUNK,
    st.integers(0, 7).filter(lambda size: size != K).map(torch.ones),
    st.just(torch.ones(K, 1)),
    st.just(torch.ones(K, dtype=torch.complex64)),
    st.just(torch.ones(K, device="meta")),
    st.just(torch.ones(K).to_sparse()),
)
WRONG_COUNTS = st.one_of(
    WRONG_SUMS,
    st.sampled_from([-1.0, np.nan, np.inf, -np.inf]).map(lambda bad: torch.tensor([1.0] * (K - 1) + [bad])),
)


@FEW
@given(where=st.sampled_from(["loss_sums", "token_counts"]), wrong=st.data())
def test_a_refused_observe_changes_nothing_and_the_corrected_call_is_taken(corpus, where, wrong):
    with make(corpus) as loader, make(corpus) as undisturbed:
        for _ in range(5):  # more than the lag: a lost call would leave the last step without a mixture
            batch, same = loader._next(), undisturbed._next()
            assert torch.equal(batch["tokens"], same["tokens"])
            good = dict(zip(("loss_sums", "token_counts"), losses(batch, K), strict=True))
            before = json.dumps(loader.state_dict())
            bad = wrong.draw(WRONG_SUMS if where == "loss_sums" else WRONG_COUNTS)
            with pytest.raises(ado.PolicyError) as caught:
                loader.observe(**{**good, where: bad})
            one_line(caught.value)
            assert "observe, step" in str(caught.value)
            assert json.dumps(loader.state_dict()) == before
            loader.observe(**good)
            undisturbed.observe(**good)
        assert loader.state_dict() == undisturbed.state_dict()


def test_counts_that_a_gpu_held_are_refused_when_they_are_read_and_at_every_call_after(monkeypatch):
    """The tensors say that they are on a GPU, so that nothing may read them while the step is launched."""

    class OnGpu(torch.Tensor):
        is_cuda = True

    monkeypatch.setattr(reduction_module, "to_host_later", lambda value: value.as_subclass(torch.Tensor).numpy)
    reduction = LossReduction(["web", "code"], replication=1, timeout_s=1.0)
    bad = torch.tensor([1.0, -2.0], dtype=torch.float64).as_subclass(OnGpu)
    reduction.push(0, bad, bad, reduced=True)
    assert list(reduction.ready()) == []
    for _ in range(2):
        with pytest.raises(ado.PolicyError, match=r"step 0: domain 'code' has -2\.0 tokens"):
            list(reduction.ready(all_steps=True))


class FailsOnce:
    """A policy that raises the first time."""

    mixture = np.full(K, 1 / K)
    calls = 0

    def update(self, mean_losses, sample_counts):
        self.calls += 1
        if self.calls == 1:
            raise ZeroDivisionError("mine")
        return self.mixture

    def state_dict(self):
        return {}

    def load_state_dict(self, state, names=None):
        pass


def test_losses_are_kept_while_a_policy_of_ones_own_raises(corpus):
    with make(corpus, FailsOnce()) as loader:
        batch = loader._next()
        with pytest.raises(ZeroDivisionError, match="mine"):
            loader.observe(*losses(batch, K))
        for _ in range(8):  # beyond the lag: the step whose update failed has its mixture too
            batch = loader._next()
            loader.observe(*losses(batch, K))
        assert loader.policy.calls == 1 + 9


@FEW
@given(step=st.one_of(JUNK, st.integers(-2, 9)), mixture=st.one_of(JUNK, st.just(np.full(K, 1 / K))))
@example(step=0, mixture=np.eye(K)[0])  # drawn already
def test_a_refused_publish_changes_nothing(corpus, step, mixture):
    dataset = ado.AdaptiveStreamingDataset(corpus, global_batch_size=8, mixture_lag=3)
    for _ in range(2):
        next(iter(dataset))
    before = dataset.state_dict(), dataset._board._any_published
    try:
        dataset.publish(step, mixture)
    except ado.AdoStreamError as error:
        one_line(error)
        assert (dataset.state_dict(), dataset._board._any_published) == before
    finally:
        dataset.close()


@pytest.mark.parametrize("kind", sorted(POLICIES))
@pytest.mark.parametrize("call", ["update", "observe_validation"])
def test_refused_losses_change_no_policy(kind, call):
    options = {"target": {"laws": "validation"}}
    options |= {"fixed": {"weights": [1, 1, 1]}, "temperature": {"tau": 2}, "unimax": {"budget": 9, "sizes": [5, 5, 5]}}
    options |= {"schedule": {"knots": [(0, [1, 1, 1]), (9, [2, 1, 1])]}, "doremi": {"reference_losses": [1, 1, 1]}}
    options |= {"gap": {"target_losses": [1, 1, 1]}, "velocitune": {"target_losses": [1, 1, 1]}}
    policy = ado.Floor(ado.make_policy(kind, {"a": 3, "b": 2, "c": 1}, **options.get(kind, {})), 0.01)
    policy.update([2.0, 3.0, np.nan], [4, 4, 0])
    before = json.dumps(policy.state_dict())

    @FEW
    @given(which=st.integers(0, 1), junk=st.one_of(JUNK, st.lists(st.floats(), min_size=3, max_size=3)))
    @example(which=1, junk=[np.nan, 1, 1])
    @example(which=1, junk=[-1, 1, 1])
    @example(which=0, junk=[1, 1])
    @example(which=0, junk=[[1, 1, 1]])
    @example(which=0, junk=torch.ones(3, requires_grad=True))
    @example(which=1, junk=np.ones(3, complex))
    @example(which=1, junk=[10**400, 1, 1])
    def wrong(which, junk):
        copied = copy.deepcopy(policy)
        arguments = [[2.0, 3.0, 1.0], [4, 4, 1]]
        arguments[which] = junk
        try:
            getattr(copied, call)(*arguments)
        except ado.PolicyError as error:
            one_line(error)
            assert json.dumps(copied.state_dict()) == before

    wrong()


@pytest.mark.parametrize("part", ["stream", "observed", "policy"])
def test_a_refused_state_changes_neither_stream_nor_policy(corpus, part):
    with make(corpus) as saved, make(corpus) as loader:
        for each, steps in ((saved, 2), (loader, 5)):
            for _ in range(steps):
                each.observe(*losses(each._next(), K))
        state, before = saved.state_dict(), json.dumps(loader.state_dict())

        @FEW
        @given(junk=JUNK.filter(lambda junk: part != "observed" or type(junk) is not int or junk > 2))
        def wrong(junk):
            with pytest.raises(ado.ResumeError) as caught:
                loader.load_state_dict({**state, part: junk})
            one_line(caught.value)
            assert json.dumps(loader.state_dict()) == before

        wrong()


def test_pages_are_not_locked_without_a_gpu(corpus, monkeypatch):
    def no_driver(shape):
        raise RuntimeError("Found no NVIDIA driver")

    monkeypatch.setattr(batch_pipeline, "_pinned", no_driver)
    with contextlib.closing(ado.AdaptiveStreamingDataset(corpus, global_batch_size=8)) as dataset:
        with pytest.raises(ado.ConfigError, match="pin_memory is True, but without a GPU"):
            dataset.start(1, 1, pin_memory=True)
        assert next(iter(dataset))["step"] == 0


@FEW
@given(which=st.integers(0, 3), junk=JUNK)
def test_a_refused_start_leaves_the_batches_coming(corpus, which, junk):
    with contextlib.closing(ado.AdaptiveStreamingDataset(corpus, global_batch_size=8, mixture_lag=3)) as dataset:
        next(iter(dataset))
        pipeline, arguments = dataset._pipeline, [1, 1, False, None]
        arguments[which] = junk
        try:
            dataset.start(*arguments)
        except ado.ConfigError as error:
            one_line(error)
            assert dataset._pipeline is pipeline
        assert dataset.next_batch()["step"] == 1


def arguments(**valid):
    """Keyword arguments of which one is replaced by anything."""
    return st.tuples(st.sampled_from(sorted(valid)), JUNK).map(lambda wrong: {**valid, wrong[0]: wrong[1]})


DATASET = arguments(
    domains=0, global_batch_size=8, seed=1, canonical_nodes=1, mixture_lag=8, sampling="systematic", cache_limit=None,
    predownload=None, replication=1, shuffle="blocks", token_column="tokens", token_dtype=None, vocab_size=None,
    timeout_s=9.0, retry=None, rank=0, world_size=1,
)  # fmt: skip
LOADER = arguments(policy="natural", prefetch=0, io_threads=0, pin_memory=False, device=None, timeout_s=9.0)
POLICY = arguments(name="ado", prior={"a": 1, "b": 1}, options={"start_step": 5})
DOMAIN = arguments(name="a", remote=None, local="x", prior=1.0)
OPEN = arguments(url="nowhere", split="train", cache_dir=None)
GUARD = st.tuples(st.sampled_from(sorted(GUARDS)), JUNK, JUNK)


@settings(max_examples=250)
@given(kind=st.sampled_from(["dataset", "loader", "policy", "domain", "corpus", "guard"]), data=st.data())
def test_constructors_take_an_argument_or_name_it_in_one_line(corpus, kind, data):
    try:
        if kind == "dataset":
            given = data.draw(DATASET)
            ado.AdaptiveStreamingDataset(**({**given, "domains": corpus} if given["domains"] == 0 else given)).close()
        elif kind == "loader":
            ado.AdaptiveLoader(ado.AdaptiveStreamingDataset(corpus, 8), **data.draw(LOADER)).close()
        elif kind == "policy":
            given = data.draw(POLICY)
            options = given["options"] if isinstance(given["options"], dict) else {"start_step": given["options"]}
            ado.make_policy(given["name"], given["prior"], **options)
        elif kind == "domain":
            ado.Domain(**data.draw(DOMAIN))
        elif kind == "corpus":
            ado.open_corpus(**data.draw(OPEN))
        else:
            guard, policy, option = data.draw(GUARD)
            given = ado.make_policy("natural", [1, 1]) if data.draw(st.booleans()) else policy
            GUARDS[guard](given, option, *([100] if guard == "repetition" else []))
    except ado.AdoStreamError as error:
        one_line(error)


def test_the_argument_and_its_value_are_named(corpus):
    for changes, text in (
        ({"global_batch_size": "4"}, "global_batch_size is '4'; expected a whole number, 1 or more"),
        ({"seed": 1.5}, "seed is 1.5; expected a whole number"),
        ({"domains": "corpus"}, "domains is 'corpus'; expected a Corpus, or a list"),
        ({"domains": [corpus]}, "domains contains .* expected ado.Domain"),
    ):
        with pytest.raises(ado.ConfigError, match=text):
            ado.AdaptiveStreamingDataset(**{"domains": corpus, **changes})
    for changes, text in (
        ({"policy": "adoo"}, r"no policy 'adoo' \(did you mean 'ado'"),
        ({"policy": {"name": "ado", "option": {}}}, r"policy: unknown option 'option' \(did you mean 'options'"),
        ({"policy": ado.AdoPolicy}, "policy is <class .* it is a class"),
        ({"policy": 5}, "policy is 5; it has no mixture, update"),
        ({"prefetch": "4"}, "prefetch is '4'"),
        ({"device": "gpu"}, "device is 'gpu'"),
        ({"dataset": corpus}, "dataset is .* expected an object of .*AdaptiveStreamingDataset"),
    ):
        with pytest.raises(ado.ConfigError, match=text):
            ado.AdaptiveLoader(**{"dataset": ado.AdaptiveStreamingDataset(corpus, 8), **changes})


def test_a_policys_name_and_options_make_it_for_the_data_set(corpus):
    dataset = ado.AdaptiveStreamingDataset(corpus, np.int64(8), seed=np.int32(3))
    assert json.dumps(dataset.state_dict())  # NumPy's integers became plain ones
    prior = dict(zip(dataset.names, dataset.prior, strict=True))
    given = {"name": "temperature", "options": {"tau": 2}, "guards": [{"name": "floor", "minimum": 0.05}]}
    loader = ado.AdaptiveLoader(dataset, given)
    sizes = dict(zip(dataset.names, dataset.num_samples, strict=True))
    expected = ado.Floor(ado.make_policy("temperature", prior, tau=2, sizes=sizes), 0.05)
    assert np.array_equal(loader.policy.mixture, expected.mixture)
    assert loader.policy.state_dict() == expected.state_dict()
    with pytest.raises(ado.ConfigError, match="unimax: option 'budget' is missing"):
        ado.AdaptiveLoader(dataset, "unimax")


def test_a_corpus_serves_as_its_domains_and_paths_as_text(corpus):
    whole = Corpus(corpus, None, SEQ_LEN, {"domains": {}}, "somewhere", "train")
    assert ado.AdaptiveStreamingDataset(whole, 8).names == [domain.name for domain in corpus]
    with tempfile.TemporaryDirectory() as cache:
        domain = ado.Domain("a", remote=Path(corpus[0].local), local=Path(cache), prior=np.float32(2))
        assert (domain.remote, domain.local, domain.prior) == (corpus[0].local, cache, 2.0)
        assert ado.AdaptiveStreamingDataset([domain], 8).num_samples == [SAMPLES[0]]
    assert ado.Domain("a", remote="~/x", local=Path("~/y")) == ado.Domain(
        "a", str(Path.home() / "x"), str(Path.home() / "y")
    )


def test_an_integer_beyond_a_float_is_no_finite_number():
    with pytest.raises(ado.ConfigError, match="expected a finite number"):
        ado.make_policy("temperature", [0.5, 0.5], tau=10**400, sizes=[1, 1])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [((1,), "domain 'd0' has 1 tokens a sample; expected 2 or more"), ((8, 9), "'d1' has 9 tokens a sample, .* 8")],
)
def test_samples_of_no_common_length_or_without_a_target_are_refused(tmp_path, tokens, message):
    for number, length in enumerate(tokens):
        columns = {"tokens": f"ndarray:uint16:{length}"}
        with MDSWriter(out=str(tmp_path / f"d{number}"), columns=columns) as writer:
            writer.write({"tokens": np.zeros(length, np.uint16)})
    domains = [ado.Domain(f"d{number}", local=str(tmp_path / f"d{number}")) for number in range(len(tokens))]
    with pytest.raises(ado.ConfigError, match=message):
        next(iter(ado.AdaptiveStreamingDataset(domains, 2, mixture_lag=None)))


@pytest.mark.parametrize(
    ("data_set", "options", "most"),
    [
        ({"mixture_lag": 10**9}, {}, "mixture_lag is 1000000000; expected a whole number, 65536 at most"),
        ({"mixture_lag": None}, {"prefetch": 10**9}, "prefetch is 1000000000; expected a whole number, 65536 at most"),
        ({}, {"io_threads": 10**9}, "io_threads is 1000000000; expected a whole number, 4096 at most"),
    ],
)
def test_what_is_kept_for_each_step_and_threads_are_bounded(corpus, data_set, options, most):
    with pytest.raises(ado.ConfigError, match=most):
        ado.AdaptiveLoader(ado.AdaptiveStreamingDataset(corpus, 8, **data_set), **options)


def test_a_guards_lag_is_bounded():
    with pytest.raises(ado.ConfigError, match="Freeze: mixture_lag is 1000000000; expected a whole number, 65536"):
        ado.Freeze(ado.make_policy("natural", {"a": 1, "b": 1}), 5, 10**9)

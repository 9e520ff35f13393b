"""from_streaming against MosaicML's StreamingDataset, with the same arguments on the same shards."""

import functools
import inspect
import itertools
import logging
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from streaming import Stream, StreamingDataset
from streaming.base.util import clean_stale_shared_memory

from ado_stream.adapters import streaming
from ado_stream.adapters.streaming import from_streaming
from ado_stream.errors import ConfigError
from ado_stream.stream import dataset as dataset_module
from tests.stream.helpers import write_domain

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"web": 96, "code": 48, "books": 48}
USUAL = {"shuffle": True, "shuffle_seed": 3, "num_canonical_nodes": 1}
OURS = {"mixture_lag": None, "token_column": "tokens"}


@pytest.fixture
def folder(tmp_path):
    for number, (name, size) in enumerate(SIZES.items()):
        write_domain(tmp_path / name / "train", number, size, shard_bytes=512)
    return tmp_path


@pytest.fixture
def streams(folder):
    """A function: the streams, with their weights by name."""

    def make(**weights):
        return [
            Stream(local=str(folder / name), split="train", **{key: each[name] for key, each in weights.items()})
            for name in SIZES
        ]

    return make


def of_streaming(**arguments) -> Counter:
    """{(stream, sample): times} of an epoch of StreamingDataset."""
    clean_stale_shared_memory()
    dataset = StreamingDataset(**arguments)
    samples = Counter(tuple(sample["tokens"][:2].tolist()) for sample in dataset)
    del dataset
    return samples


def of_ours(**arguments) -> Counter:
    """The same of `from_streaming`."""
    dataset, num_steps = from_streaming(**arguments, **OURS)
    batches = list(itertools.islice(dataset, num_steps))
    dataset.close()
    assert {len(batch["tokens"]) for batch in batches} == {arguments["batch_size"]}
    return Counter(tuple(row[:2].tolist()) for batch in batches for row in batch["tokens"])


def by_stream(samples: Counter) -> list[int]:
    """Samples of each stream."""
    return np.bincount([stream for stream, _ in samples.elements()], minlength=3).tolist()


# Warnings of Streaming: its iterator in a process without workers, and resource trackers of its shared memory.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::ResourceWarning")


@pytest.mark.parametrize("shuffle_algo", ["py1e", "py1br", "naive"])
def test_an_epoch_has_the_same_samples(streams, shuffle_algo):
    """Of batches in which the streams' shares are whole numbers: 4, 2 and 2."""
    arguments = {"streams": streams(), "batch_size": 8, "shuffle_algo": shuffle_algo, **USUAL}
    ours = of_ours(**arguments)
    assert ours == of_streaming(**arguments)
    assert set(ours.values()) == {1}
    assert len(ours) == sum(SIZES.values())


@pytest.mark.parametrize(
    ("weights", "options"),
    [
        ({"proportion": {"web": 1, "code": 1, "books": 2}}, {"epoch_size": 192}),
        ({"proportion": {"web": 0.25, "code": 0.25, "books": 0.5}}, {}),
        ({"repeat": {"web": 0.5, "code": 1, "books": 2}}, {}),
        ({"choose": {"web": 48, "code": 48, "books": 96}}, {}),
        ({}, {"epoch_size": "96"}),
    ],
)
def test_an_epoch_has_the_proportions_that_are_given(streams, weights, options):
    arguments = {"streams": streams(**weights), "batch_size": 8, **options, **USUAL}
    ours = of_ours(**arguments)
    theirs = of_streaming(**{**arguments, "streams": streams(**weights)})  # it writes its weights into the streams
    assert by_stream(ours) == by_stream(theirs)
    for stream, (size, drawn) in enumerate(zip(SIZES.values(), by_stream(ours), strict=True)):
        times = [number for (which, _), number in ours.items() if which == stream]
        assert max(times) == -(-drawn // size), "none comes twice before all came once"


@pytest.mark.parametrize("weights", [{}, {"repeat": {"web": 0.5, "code": 1, "books": 2}}])
def test_indexes_are_opened_once(streams, monkeypatch, weights):
    opened, open_indexes = [], dataset_module.open_indexes
    monkeypatch.setattr(dataset_module, "open_indexes", lambda *given: opened.append(given) or open_indexes(*given))
    from_streaming(streams=streams(**weights), batch_size=8, **USUAL, **OURS)
    assert len(opened) == 1


def test_an_epoch_without_a_sample_is_refused(streams):
    with pytest.raises(ConfigError, match="the weights of all domains are 0"):
        from_streaming(streams=streams(choose=dict.fromkeys(SIZES, 0)), batch_size=8, **USUAL, **OURS)


def test_one_stream_of_remote_and_local_and_a_split(folder, tmp_path):
    arguments = {"remote": str(folder / "web"), "split": "train", "batch_size": 8, **USUAL}
    ours = of_ours(local=str(tmp_path / "a"), **arguments)
    assert ours == of_streaming(local=str(tmp_path / "b"), **arguments)


def test_sizes_by_device_become_sizes_by_job(streams):
    """batch_size and predownload are a device's; ranks that replicate have one batch. The node's cache is shared."""
    arguments = {"streams": streams(), "batch_size": 4, "predownload": 16, "cache_limit": "1gb", "replication": 2}
    rows = []
    for rank in range(4):
        dataset, num_steps = from_streaming(**arguments, **USUAL, **OURS, rank=rank, world_size=4)
        assert num_steps == sum(SIZES.values()) // 8
        assert dataset.settings.global_batch_size == 8
        assert (dataset._predownload, dataset._cache_limit) == (32, 1 << 30)
        rows.append(next(iter(dataset))["tokens"])
        dataset.close()
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[2], rows[3])
    assert not torch.equal(rows[0], rows[2])


def test_the_seed_and_the_algorithm_are_those_given(streams):
    def first_rows(**changes):
        arguments = {"streams": streams(), "batch_size": 8, **USUAL, **OURS, **changes}
        dataset, _ = from_streaming(**arguments)
        return next(iter(dataset))["tokens"].tolist()

    assert first_rows() == first_rows()
    assert first_rows() != first_rows(shuffle_seed=4)
    assert first_rows() != first_rows(shuffle_algo="naive")


def test_canonical_nodes_default_to_streamings(streams, monkeypatch):
    """One a node, 64 with the algorithms that shuffle shard by shard."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    arguments = {"streams": streams()[:1], "shuffle": True, "rank": 0, **OURS}
    assert from_streaming(**arguments, world_size=4, batch_size=4)[0].settings.num_lanes == 2
    assert from_streaming(**arguments, world_size=2, batch_size=32, shuffle_algo="py1s")[0].settings.num_lanes == 64


def test_streams_of_one_last_name_are_told_apart(folder):
    streams = [Stream(local=str(folder / name / "train")) for name in SIZES]
    dataset, _ = from_streaming(streams=streams, batch_size=8, **USUAL, **OURS)
    assert dataset.names == [f"{name}/train" for name in SIZES]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shuffle": False}, "shuffle=False cannot be honoured: samples are always shuffled; pass shuffle=True"),
        ({"batching_method": "per_stream"}, "batching_method='per_stream' cannot be honoured"),
        ({"sampling_method": "fixed"}, "sampling_method='fixed' cannot be honoured"),
        ({"remote": "s3://bucket/x"}, "give streams=, or remote= and local=, not both"),
        ({"shuffle_algo": "py9"}, "py9"),
    ],
)
def test_what_changes_the_samples_is_refused(streams, arguments, message):
    with pytest.raises(ConfigError, match=message):
        from_streaming(**{"streams": streams(), "batch_size": 8, **USUAL, **arguments}, **OURS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": None}, "from_streaming: batch_size is None; expected a whole number"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"streams": Stream(local="here")}, "streams is <.*Stream object.*expected a list of streaming.Stream"),
        ({"streams": "here"}, "streams is 'here'; expected a list of streaming.Stream"),
        ({"streams": 3}, "streams is 3; expected a list of streaming.Stream"),
        ({"streams": [3]}, "streams: an entry is 3; expected an object of streaming"),
        ({"streams": []}, "no domains given"),
        ({"streams": None}, "give streams=, or remote= and local="),
        ({"streams": None, "local": 3}, "local is 3; expected a path"),
        ({"streams": None, "local": " "}, "local is ' '; expected a path"),
        ({"streams": None, "local": "here", "split": 3}, "split is 3; expected a text"),
        ({"streams": None, "local": "here", "remote": "gopher://host/x"}, "Unsupported remote path: gopher://host/x"),
        ({"streams": [Stream(local=3)]}, "a stream's path is 3; expected a path"),
        ({"streams": [Stream(local="here", split=3)]}, "split is 3; expected a text"),
        ({"streams": [Stream(local="here", repeat=float("nan"))]}, "stream 'here': repeat is nan"),
        ({"streams": [Stream(local="here", choose=1.5)]}, "stream 'here': choose is 1.5"),
        ({"streams": [Stream(local="here", proportion=float("inf"))]}, "domain 'here': prior is inf"),
        ({"cache_limit": "abc"}, "cache_limit is 'abc'; expected a number such as"),
        ({"cache_limit": "1.2.3gb"}, "cache_limit is '1.2.3gb'; expected a number such as"),
        ({"cache_limit": 0}, "cache_limit is 0; expected a whole number"),
        ({"epoch_size": "xyz"}, "epoch_size is 'xyz'; expected a number such as"),
        ({"epoch_size": float("nan")}, "epoch_size is nan; expected a number such as"),
        ({"epoch_size": "9" * 400 + "k"}, "epoch_size is '999.*; expected a number such as"),
        ({"epoch_size": -5}, "epoch_size is -5; expected a whole number"),
        ({"epoch_size": 0}, "epoch_size is 0; expected a whole number"),
        ({"epoch_size": True}, "epoch_size is True; expected a whole number"),
        ({"epoch_size": [1]}, r"epoch_size is \[1\]; expected a number such as"),
        ({"predownload": "8"}, "predownload is '8'; expected a whole number"),
        ({"num_canonical_nodes": 0}, "num_canonical_nodes is 0; expected a whole number"),
        ({"shuffle_seed": None}, "shuffle_seed is None; expected a whole number"),
        ({"shuffle_algo": None}, "shuffle_algo is None; expected a text"),
        ({"replication": 0}, "replication is 0; expected a whole number"),
        ({"rank": "0", "world_size": 1}, "rank is '0'; expected a whole number"),
        ({"shufle_seed": 3}, "from_streaming: unknown option 'shufle_seed'.*shuffle_seed"),
        ({"domains": []}, "from_streaming: unknown option 'domains'"),
    ],
)
def test_an_argument_of_the_wrong_kind_is_refused_by_its_name(streams, arguments, message):
    with pytest.raises(ConfigError, match=message):
        from_streaming(**{"streams": streams(), "batch_size": 8, **USUAL, **arguments}, **OURS)


@pytest.mark.parametrize("value", ["x", "0", "-1", "", "1.5", "9" * 30])
def test_ranks_of_a_node_that_are_no_number_are_refused(streams, monkeypatch, value):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", value)
    with pytest.raises(ConfigError, match="the environment variable LOCAL_WORLD_SIZE is"):
        from_streaming(streams=streams(), batch_size=8, **USUAL, **OURS)


def test_paths_and_any_iterable_of_streams_serve(folder):
    streams = (Stream(local=folder / name, split="train") for name in SIZES)
    dataset, num_steps = from_streaming(streams=streams, batch_size=8, epoch_size=96.0, **USUAL, **OURS)
    assert (dataset.names, num_steps) == (list(SIZES), 12)
    assert from_streaming(local=folder / "web", split="train", batch_size=8, **USUAL, **OURS)[1] == 12


def test_shuffle_must_be_said_because_streamings_default_is_off(streams):
    with pytest.raises(ConfigError, match="pass shuffle=True"):
        from_streaming(streams=streams(), batch_size=8)


def test_weights_that_streaming_refuses_are_refused(streams):
    mixed = [*streams(proportion={"web": 1, "code": 1, "books": 1})[:2], streams()[2]]
    with pytest.raises(ConfigError, match="all streams a proportion=, or none"):
        from_streaming(streams=mixed, batch_size=8, **USUAL)
    repeated = streams(repeat=dict.fromkeys(SIZES, 2))
    with pytest.raises(ConfigError, match="epoch_size= does not go with repeat="):
        from_streaming(streams=repeated, batch_size=8, epoch_size=64, **USUAL)


def test_what_has_no_effect_is_named_once(streams, caplog):
    with caplog.at_level(logging.WARNING):
        from_streaming(streams=streams(), batch_size=8, partition_algo="orig", keep_zip=False, **USUAL, **OURS)
    assert [record.getMessage() for record in caplog.records] == [
        "from_streaming: partition_algo='orig' has no effect here; see docs/trainers.md"
    ]


def test_what_a_stream_says_of_its_own_downloads_is_named(folder, caplog):
    streams = [Stream(local=str(folder / "web"), split="train", validate_hash="xxh64", download_retry=5)]
    with caplog.at_level(logging.WARNING):
        from_streaming(streams=streams, batch_size=8, **USUAL, **OURS)
    assert [record.getMessage().split(" has")[0] for record in caplog.records] == [
        "from_streaming: download_retry=5",
        "from_streaming: validate_hash='xxh64'",
    ]


def test_every_argument_of_streamings_classes_is_taken_and_in_the_table(streams):
    """Of the package that is installed: `from_streaming` takes StreamingDataset's defaults, and the page has all."""
    of_dataset, of_stream = (inspect.signature(each.__init__).parameters for each in (StreamingDataset, Stream))
    table = (ROOT / "docs/trainers.md").read_text().partition("| StreamingDataset | here |")[2]
    assert {*of_dataset, *of_stream} - {"self"} == set(re.findall(r"`(\w+)[`=]", table)) & {*of_dataset, *of_stream}
    defaults = {name: each.default for name, each in of_dataset.items() if name != "self"}
    dataset, num_steps = from_streaming(**{**defaults, "streams": streams(), "batch_size": 8, "shuffle": True}, **OURS)
    assert num_steps == sum(SIZES.values()) // 8
    dataset.close()


def test_a_domain_has_no_credentials_of_its_streams_url_in_its_name(monkeypatch):
    """Names stand in messages, records and reports. The data set is replaced: nobody listens at these addresses."""

    class Opened(Exception):
        """Ends the call with the domains."""

    @functools.wraps(streaming.AdaptiveStreamingDataset)
    def open_domains(domains, **settings):
        raise Opened([domain.name for domain in domains])

    monkeypatch.setattr(streaming, "AdaptiveStreamingDataset", open_domains)
    streams = [Stream(remote=f"sftp://user:word@{host}/train", local="here") for host in ("first", "second")]
    with pytest.raises(Opened) as opened:
        from_streaming(streams=streams, batch_size=8, **USUAL, **OURS)
    assert opened.value.args[0] == ["***@first/train", "***@second/train"]

"""Best-fit packing: samples against plain loops, books against what is stored, restarts, and losses without padding."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ado_stream as ado
from ado_model import ModelConfig, Transformer
from ado_stream.cli.main import main
from ado_stream.corpus.mds import ShardFormat
from ado_stream.prepare.best_fit import PackingCounts, pack_best_fit
from ado_stream.prepare.coordinator import prepare
from ado_stream.prepare.prepare_config import PrepareConfig
from ado_stream.prepare.spool import Spool
from ado_stream.stream.document_positions import targets_without_padding
from ado_stream.stream.sample_reader import SampleReader
from ado_stream.train.distributed import DistributedContext
from ado_stream.train.parallel import ParallelModel
from ado_stream.train.run_config import TrainSection
from ado_stream.train.train_step import TrainStep
from ado_stream.train.validation import Validator

END = 0
ALONE = DistributedContext(0, 1, torch.device("cpu"))


def joined(lengths) -> np.ndarray:
    """Documents of these lengths, end tokens included, whose other tokens say where they stand."""
    parts, number = [np.zeros(0)], 1
    for length in lengths:
        parts += [np.arange(number, number + length - 1), [END]]
        number += length - 1
    return np.concatenate(parts).astype(np.uint32)


def best_fit_by_hand(lengths, capacity):
    """Rooms left in the bins, by the definition: longest first, each into the bin with the least room that takes it."""
    rooms = []
    for length in sorted((each for each in lengths if each), reverse=True):
        fitting = [room for room in rooms if room >= length]
        room = min(fitting) if fitting else capacity
        if fitting:
            rooms.remove(room)
        rooms.append(room - length)
    return sorted(rooms)


@settings(max_examples=200)
@given(st.lists(st.integers(2, 40), min_size=1, max_size=60), st.integers(2, 16), st.integers(0, 40))
def test_samples_hold_every_document_as_whole_as_it_fits(lengths, sample_tokens, begin):
    tokens = joined(lengths)
    samples, counts = pack_best_fit(tokens, sample_tokens, END, begin)

    documents = np.split(tokens, np.cumsum(lengths)[:-1])
    pieces = [
        tuple(document[start : start + sample_tokens])
        for document in documents
        for start in range(0, len(document), sample_tokens)
    ]
    pieces = Counter(piece for piece in pieces if piece != (END,))  # the end token alone, after a full sample
    found: Counter = Counter()
    rooms = []
    for row in samples.tolist():
        padding = 0
        while len(row) > 1 and row[-2:] == [END, END]:
            row.pop()
            padding += 1
        rooms.append(padding)
        inner = [index + 1 for index, token in enumerate(row) if token == END and index + 1 < len(row)]
        found.update(tuple(row[start:stop]) for start, stop in zip([0, *inner], [*inner, len(row)], strict=True))
    assert found == pieces
    rests = [rest for length in lengths if (rest := length % sample_tokens) != 1]
    num_full = sum(length // sample_tokens for length in lengths)
    assert sorted(rooms) == sorted([*best_fit_by_hand(rests, sample_tokens), *[0] * num_full])

    places = np.cumsum([begin, *lengths])
    assert (
        counts
        == PackingCounts(
            documents=len(lengths),
            cut=sum(length - 1 > sample_tokens for length in lengths),  # without its end token
            cut_by_joining=sum(
                start // sample_tokens != (stop - 1) // sample_tokens
                for start, stop in zip(places[:-1], places[1:], strict=True)
            ),
            padding_tokens=sum(rooms),
        )
    )


@given(st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=8), min_size=1, max_size=12), st.integers(0, 11))
def test_spools_hold_whole_documents_wherever_they_are_taken_up_again(tmp_path_factory, blocks, stop):
    """A document of one token is an end token alone, and left out."""
    shard_format = ShardFormat(8, "uint16", 1 << 9)
    blocks_wanted = [joined([length for length in block if length > 1]) for block in blocks]
    wanted = np.concatenate(blocks_wanted).astype(np.uint16).tobytes()
    ends = []
    for resumed_at in (None, stop):
        folder = tmp_path_factory.mktemp("spool")
        spool = Spool(folder / "spool", shard_format, end_id=END)
        for number, block in enumerate(blocks):
            if number == resumed_at:
                spool.flush()
                state = spool.state
                with open(spool.path(state.shard), "ab") as file:
                    file.write(b"lost!!")
                spool = Spool(folder / "spool", shard_format, state, END)
            spool.append(len(block), 0, joined(block).astype(np.uint16).tobytes())
        spool.flush()
        files = [path.read_bytes() for path in sorted(folder.iterdir()) if path.stat().st_size]
        assert b"".join(files) == wanted
        for shard, data in enumerate(files):
            assert len(data) == spool.whole_bytes(shard)
            assert spool.begin_bytes(shard) == sum(map(len, files[:shard]))
            assert np.frombuffer(data, np.uint16)[-1] == END
        assert all(len(data) >= shard_format.spool_bytes for data in files[:-1])
        ends.append(files)
    assert ends[0] == ends[1]


@pytest.fixture(scope="module")
def source(tmp_path_factory, write_jsonl):
    """Documents of two domains, 1 to 120 bytes, some without text."""
    draw = np.random.default_rng(3)
    texts = ["".join(draw.choice(list("abcdefgh "), draw.integers(0, 120))) for _ in range(600)]
    documents = [{"text": text, "meta": {"pile_set_name": "ab"[number % 3 == 0]}} for number, text in enumerate(texts)]
    return write_jsonl(tmp_path_factory.mktemp("source") / "in.jsonl", documents), documents


def config(source, out, **options):
    options = {"seq_len": 64, "domain_key": "meta.pile_set_name", "shard_bytes": 1 << 12, "workers": 1, **options}
    return PrepareConfig((str(source[0]),), str(out), packing="best-fit", **options)


@pytest.fixture(scope="module")
def corpus(source, tmp_path_factory):
    return ado.open_corpus(prepare(config(source, tmp_path_factory.mktemp("best") / "corpus", val_frac=0.1)))


def stored(corpus) -> dict[str, np.ndarray]:
    """(samples, tokens) of each domain."""
    readers = {domain.name: SampleReader(domain) for domain in corpus.domains}
    return {name: reader.read(np.arange(reader.num_samples)) for name, reader in readers.items()}


def test_books_are_those_of_the_stored_tokens(corpus, source):
    end = corpus.tokenizer.end_id
    texts: Counter = Counter()
    for split in ("train", "val"):
        part = ado.open_corpus(corpus.url, split)
        for name, samples in stored(part).items():
            entry = corpus.manifest["domains"][name]["splits"][split]
            padding = (samples[:, 1:] == end) & (samples[:, :-1] == end)
            assert entry["samples"] == len(samples)
            assert entry["padding_tokens"] == padding.sum()
            assert entry["tokens"] == samples.size - padding.sum()
            assert entry["dropped_tokens"] == 0
            assert entry["cut_documents"] < entry["cut_by_joining"] <= entry["documents"]
            for row in samples:
                pieces = bytes(token if token != end else 0 for token in row.tolist()).split(b"\0")
                texts.update(name + piece.decode() for piece in pieces if piece)
    expected: Counter = Counter()
    for document in source[1]:
        text = document["text"]
        pieces = [text[start : start + 65] for start in range(0, len(text), 65)]
        expected.update(document["meta"]["pile_set_name"] + piece for piece in pieces)
    assert texts == expected
    assert len(list(Path(corpus.url).rglob("*.zstd"))) > 6, "several shards a domain"


def test_the_corpus_does_not_depend_on_the_workers(source, tmp_path, tree_hashes):
    for workers in (1, 2):
        prepare(config(source, tmp_path / str(workers), val_frac=0.1, workers=workers))
    assert tree_hashes(tmp_path / "1") == tree_hashes(tmp_path / "2")


def test_joining_is_another_corpus_and_its_plan_is_that_of_earlier_releases(corpus, source, tmp_path):
    with pytest.raises(ado.ConfigError, match="a corpus of other input or settings is there already"):
        prepare(PrepareConfig(**{**vars(config(source, corpus.url, val_frac=0.1)), "packing": "join"}))
    with pytest.raises(ado.ConfigError, match="packing is 'none'; expected one of join, best-fit"):
        PrepareConfig((str(source[0]),), str(tmp_path), packing="none")


def test_the_command_prints_shares_beside_those_of_joining(source, tmp_path, capsys):
    command = ["prepare", str(source[0]), "--domain-key", "meta.pile_set_name", "--seq-len", "64", "--workers", "1"]
    assert main([*command, "--packing", "best-fit", "--out", str(tmp_path / "corpus"), "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest["packing"] == "best-fit"
    splits = [each["splits"]["train"] for each in manifest["domains"].values()]
    keys = ("documents", "cut_documents", "cut_by_joining", "padding_tokens", "samples")
    documents, cut, other, padding, samples = (sum(split[key] for split in splits) for key in keys)
    assert main(["info", str(tmp_path / "corpus")]) == 0
    assert (
        f"packing best-fit: {cut / documents:.2%} of the documents cut (joined: {other / documents:.2%}), "
        f"{padding / samples / 65:.2%} of the stored tokens padding (joined: none)"
    ) in capsys.readouterr().out


def test_targets_leave_padding_out():
    tokens = torch.tensor([[7, 8, END, 9, END, END, END], [END, 5, 6, END, END, 4, 3]])
    assert targets_without_padding(tokens, END).tolist() == [
        [8, END, 9, END, -100, -100],
        [5, 6, END, -100, 4, 3],
    ]


def test_batches_losses_and_validation_leave_padding_out(corpus):
    """Oracle: cross-entropy of every target that is not an end token after an end token, in float64."""
    torch.manual_seed(0)
    model = Transformer(ModelConfig(1, 16, 2, vocab_size=corpus.tokenizer.vocab_size, context_length=64))
    end = corpus.tokenizer.end_id

    def by_hand(tokens_BT):
        kept = ~((tokens_BT[:, 1:] == end) & (tokens_BT[:, :-1] == end))
        losses = torch.nn.functional.cross_entropy(
            model(tokens_BT[:, :-1]).double().transpose(1, 2), tokens_BT[:, 1:], reduction="none"
        )
        return (losses * kept).sum(1).detach(), kept.sum(1)

    with ado.AdaptiveLoader(ado.AdaptiveStreamingDataset(corpus, global_batch_size=8, mixture_lag=None)) as loader:
        batch = next(iter(loader))
    tokens_BT, domain_B = batch["tokens"], batch["domain"]
    _, sums_K, counts_K = model.loss(tokens_BT[:, :-1], batch["targets"], domain_B, 2)
    loss_B, kept_B = by_hand(tokens_BT)
    assert kept_B.sum() < 8 * 64, "some of it is padding"
    expected_K = torch.zeros(2, dtype=torch.float64).index_add(0, domain_B, loss_B)
    torch.testing.assert_close(sums_K.double(), expected_K, rtol=1e-5, atol=0)
    assert counts_K.tolist() == torch.zeros(2, dtype=torch.int64).index_add(0, domain_B, kept_B).tolist()

    val = ado.open_corpus(corpus.url, "val")
    names = [domain.name for domain in val.domains]
    result = Validator(val, names, None, ALONE, 4)(model.loss)
    for index, name in enumerate(names):
        loss_B, kept_B = by_hand(torch.from_numpy(stored(val)[name].astype(np.int64)))
        assert result.domain_tokens_K[index] == kept_B.sum()
        assert result.domain_loss_K[index] == pytest.approx((loss_B.sum() / kept_B.sum()).item(), rel=1e-5)


def test_gradients_are_those_of_the_mean_over_what_counts(corpus):
    """Of micro-batches with different numbers of padding."""
    torch.manual_seed(0)
    model = Transformer(ModelConfig(1, 16, 2, vocab_size=corpus.tokenizer.vocab_size, context_length=64))
    tokens_BT = torch.from_numpy(np.concatenate(list(stored(corpus).values()))[-8:].astype(np.int64))
    tokens_BT[0, 3:] = corpus.tokenizer.end_id
    targets_BT = targets_without_padding(tokens_BT, corpus.tokenizer.end_id)
    kept = (targets_BT != -100).sum(1)
    assert kept[0] < kept[1]
    options = TrainSection(micro_batch_size=2, dtype="float32", compile=False)
    parallel = ParallelModel(model, ALONE, options)
    step = TrainStep(parallel, torch.optim.SGD(model.parameters(), lr=0.0), options, 2)
    _, counts_K = step.forward_backward(tokens_BT, torch.zeros(8, dtype=torch.int64), targets_BT)
    assert counts_K.tolist() == [kept.sum(), 0]
    found = [each.grad.clone() for each in model.parameters()]
    model.zero_grad()
    logits = model(tokens_BT[:, :-1]).transpose(1, 2)
    torch.nn.functional.cross_entropy(logits, targets_BT, ignore_index=-100).backward()
    for gradient, each in zip(found, model.parameters(), strict=True):
        assert (gradient - each.grad).abs().max() < 1e-5 * each.grad.abs().max() + 1e-9

"""Fill-in-the-middle: what it makes of documents, at which rate, the same on any ranks and after any resume."""

import json

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer

import ado_stream as ado
from ado_stream.corpus.bpe import train_bpe
from ado_stream.corpus.tokenizer import HuggingFaceTokenizer
from ado_stream.errors import ConfigError, ResumeError
from ado_stream.prepare.coordinator import prepare
from ado_stream.prepare.prepare_config import PrepareConfig
from ado_stream.stream.fill_in_middle import FillInMiddle
from ado_stream.stream.fill_in_middle_rows import make_fill_in_middle
from ado_stream.train.components import build_components
from ado_stream.train.distributed import DistributedContext
from ado_stream.train.run_config import load_config

PREFIX, SUFFIX, MIDDLE, END = MARKS = (900, 901, 902, 0)
NAMES = ["web", "code"]


def rows(rate: float, spm_rate: float, tokens: np.ndarray, seed: int = 3, ids=None) -> np.ndarray:
    """`tokens` as samples 0, 1, ... of the domain "code"; "web" has no fill-in-the-middle."""
    fim = make_fill_in_middle({"web": None, "code": FillInMiddle(rate, spm_rate)}, seed, MARKS[:3], END)
    out = tokens.copy()
    fim.apply(out, np.ones(len(tokens), np.int32), np.arange(len(tokens)) if ids is None else ids)
    return out


def packed(num_rows: int, width: int, longest: int = 40, seed: int = 0) -> np.ndarray:
    """Rows of documents of 0 to `longest` tokens; every token but END comes once."""
    rng = np.random.default_rng(seed)
    out = np.arange(1000, 1000 + num_rows * width).reshape(num_rows, width)
    for row in out:
        at = int(rng.integers(longest))
        while at < width:
            row[at] = END
            at += 1 + int(rng.integers(longest))
    return out


def documents(row: np.ndarray) -> list[list[int]]:
    """The row cut after each END."""
    parts, part = [], []
    for token in row.tolist():
        part.append(token)
        if token == END:
            parts.append(part)
            part = []
    return [*parts, part] if part else parts


def restored(document: list[int]) -> list[int]:
    """The document that was reordered, read by its marks."""
    if PREFIX not in document:
        return document
    end = [END] if document[-1] == END else []
    body = document[: len(document) - len(end)]
    assert body[0] == PREFIX
    suffix, middle = body.index(SUFFIX), body.index(MIDDLE)
    assert suffix < middle
    before, after, rest = body[1:suffix], body[suffix + 1 : middle], body[middle + 1 :]
    if suffix == 1:  # SPM, where prefix and middle are one; or PSM with an empty prefix
        return [*rest, *after, *end]
    return [*before, *rest, *after, *end]


@pytest.mark.parametrize("spm_rate", [0.0, 1.0, 0.5])
@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_restored_documents_are_the_samples_beginning(rate, spm_rate):
    """Nothing is lost but what the marks push out at the end; the length is kept."""
    tokens = packed(400, 129)
    out = rows(rate, spm_rate, tokens)
    assert out.shape == tokens.shape
    num_chosen = 0
    for before, after in zip(tokens, out, strict=True):
        whole = [token for document in documents(after) for token in restored(document)]
        marks = int((after == PREFIX).sum())
        assert (after == SUFFIX).sum() == (after == MIDDLE).sum() == marks
        assert whole == before[: len(before) - 3 * marks].tolist()
        num_chosen += marks
    assert num_chosen > 400 * rate


def test_psm_and_spm_by_hand():
    """Documents that are chosen: the parts are in the order of the paper, cut at the same places."""
    tokens = np.tile([*range(1, 13), END, 0, 0, 0], (20, 1))  # room for the marks: padding goes
    num_whole = 0
    for psm, spm in zip(rows(1.0, 0.0, tokens).tolist(), rows(1.0, 1.0, tokens).tolist(), strict=True):
        suffix, middle = psm.index(SUFFIX), psm.index(MIDDLE)
        p, s, m = psm[1:suffix], psm[suffix + 1 : middle], psm[middle + 1 : -1]
        assert psm == [PREFIX, *p, SUFFIX, *s, MIDDLE, *m, END]
        assert [*p, *m, *s] == list(range(1, 13))
        assert spm == [PREFIX, SUFFIX, *s, MIDDLE, *p, *m, END]
        num_whole += all((p, s, m))
    assert num_whole > 5


def test_a_last_document_is_shortened_before_it_is_reordered():
    """It has no end token; its three parts are of what the marks leave, and in their order."""
    tokens = np.arange(1001, 4001).reshape(100, 30)
    for before, after in zip(tokens, rows(1.0, 0.0, tokens), strict=True):
        assert restored(after.tolist()) == before[:27].tolist()
    short = np.array([[1, 2, 3], [4, 5, END]])  # no room for marks and a token
    np.testing.assert_array_equal(rows(1.0, 0.5, short), short)


def test_rates_are_those_asked_for():
    """Binomial, 5 standard deviations. Of documents so early in their row that all fit, were all of them chosen."""
    tokens = packed(3000, 257, longest=20)
    num_early = [int((row[:100] == END).sum()) for row in tokens]
    for rate, spm_rate in ((0.5, 0.5), (0.1, 0.9)):
        out = rows(rate, spm_rate, tokens)
        found = [part for row, num in zip(out, num_early, strict=True) for part in documents(row)[:num]]
        found = [part for part in found if part != [END]]
        chosen = [part for part in found if PREFIX in part]
        assert abs(len(chosen) / len(found) - rate) < 5 * (rate * (1 - rate) / len(found)) ** 0.5
        spm = sum(part[1] == SUFFIX for part in chosen) / len(chosen)  # SPM, or PSM without a prefix
        expected = np.mean([spm_rate + (1 - spm_rate) * first_cut_at_0(len(part) - 4) for part in chosen])
        assert abs(spm - expected) < 5 * (expected * (1 - expected) / len(chosen)) ** 0.5


def first_cut_at_0(length: int) -> float:
    """The probability that the lower of two uniform places among length + 1 is 0."""
    return 1 - (length / (length + 1)) ** 2


def test_cuts_are_uniform():
    """Over the length + 1 places of a document of 9 tokens, both cuts together; chi-squared at 1e-4 of 9 degrees."""
    tokens = np.tile([*range(1, 10), END, 0, 0, 0], (20_000, 1))
    count_P = np.zeros(10)
    for row in rows(1.0, 0.0, tokens).tolist():
        prefix = row.index(SUFFIX) - 1
        np.add.at(count_P, [prefix, 9 - (row.index(MIDDLE) - row.index(SUFFIX) - 1)], 1)
    assert ((count_P - 4000) ** 2 / 4000).sum() < 33.7


def test_a_samples_fate_follows_from_seed_domain_and_number():
    """Not from the batch, its rows or other domains; another seed or domain has another."""
    tokens = packed(64, 65)
    out = rows(0.5, 0.5, tokens)
    order = np.random.default_rng(1).permutation(64)
    np.testing.assert_array_equal(rows(0.5, 0.5, tokens[order], ids=order), out[order])
    assert (rows(0.5, 0.5, tokens, seed=4) != out).any(axis=1).mean() > 0.5
    fim = make_fill_in_middle({"web": FillInMiddle(0.5), "code": FillInMiddle(0.5)}, 3, MARKS[:3], END)
    both = np.concatenate([tokens, tokens])
    fim.apply(both, np.repeat(np.array([0, 1], np.int32), 64), np.tile(np.arange(64), 2))
    np.testing.assert_array_equal(both[64:], out)
    assert (both[:64] != out).any(axis=1).mean() > 0.5


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fim")
    rng = np.random.default_rng(0)
    for name in NAMES:
        lines = [json.dumps({"text": name * int(rng.integers(3, 30))}) for _ in range(80)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    inputs = tuple(str(folder / f"{name}.jsonl") for name in NAMES)
    return prepare(PrepareConfig(inputs, str(folder / "c"), seq_len=48, workers=1))


def dataset(corpus, fim=0.5, **options) -> ado.AdaptiveStreamingDataset:
    opened = ado.open_corpus(corpus)
    domains = [
        ado.Domain(each.name, local=each.local, fim=fim if each.name == "code" else None) for each in opened.domains
    ]
    options = {"fim_tokens": [257, 258, 259], "end_token": 256, "mixture_lag": None, **options}
    return ado.AdaptiveStreamingDataset(domains, 8, 5, **options)


def batches(stream: ado.AdaptiveStreamingDataset, num: int) -> list[np.ndarray]:
    iterator = iter(stream)
    found = [next(iterator)["tokens"].numpy().copy() for _ in range(num)]
    stream.close()
    return found


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_batches_are_the_same_on_any_ranks_and_after_a_resume(corpus, num_ranks):
    """Over two epochs of the domain; with threads of its own or without."""
    whole = batches(dataset(corpus), 60)
    parts = [batches(dataset(corpus, rank=rank, world_size=num_ranks), 60) for rank in range(num_ranks)]
    for step in range(60):
        np.testing.assert_array_equal(np.concatenate([part[step] for part in parts]), whole[step])
    first, second = dataset(corpus), dataset(corpus)
    batches(first, 23)
    state = json.loads(json.dumps(first.state_dict()))
    second.load_state_dict(state)
    second.start(prefetch=0, io_threads=0)
    for step in range(23, 60):
        np.testing.assert_array_equal(second.next_batch()["tokens"].numpy(), whole[step])
    second.close()
    assert any((tokens == 257).any() for tokens in whole)


def test_other_domains_and_order_are_untouched(corpus):
    """Against the same stream without fill-in-the-middle: the samples are the same, "web" to the token."""
    with_fim, without = dataset(corpus), dataset(corpus, fim=None)
    for _ in range(20):
        mine, theirs = next(iter(with_fim)), next(iter(without))
        assert mine["domain"].tolist() == theirs["domain"].tolist()
        web = mine["domain"] == with_fim.names.index("web")
        np.testing.assert_array_equal(mine["tokens"][web].numpy(), theirs["tokens"][web].numpy())
        for row, plain in zip(mine["tokens"][~web].numpy(), theirs["tokens"][~web].numpy(), strict=True):
            assert set(row.tolist()) - {257, 258, 259} <= set(plain.tolist())
    assert without.fim is None
    assert "fim" not in json.dumps(without.state_dict())
    with_fim.close(), without.close()


def test_a_state_of_another_rate_is_refused(corpus):
    state = dataset(corpus).state_dict()
    for other in (dataset(corpus, fim=0.25), dataset(corpus, fim=None), dataset(corpus, fim_tokens=[257, 258, 260])):
        with pytest.raises(
            ResumeError, match=r"domain 'code': the stream was saved with fill-in-the-middle \{'rate': 0.5"
        ):
            other.load_state_dict(state)
    with pytest.raises(ResumeError, match="saved with fill-in-the-middle None"):
        dataset(corpus).load_state_dict(dataset(corpus, fim=None).state_dict())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"fim_tokens": None}, "domain 'code': fill-in-the-middle needs three marks"),
        ({"end_token": None}, "domain 'code': fill-in-the-middle needs end_token="),
        ({"fim_tokens": [257, 258]}, "expected ids of prefix, suffix and middle"),
        ({"fim_tokens": [257, 258, 256]}, "differ from each other and from the end token, 256"),
        ({"fim_tokens": [257, 258, -1]}, "fim_tokens is -1; expected a whole number, 0 or more"),
        ({"fim": 1.5}, "domain 'code': fim.rate is 1.5; expected a finite number from 0 to 1"),
        ({"fim": {"rate": 0.5, "spm": 1}}, "spm"),
        ({"fim": {"spm_rate": 0.5}}, "domain 'code': fim has no rate"),
        ({"fim": "much"}, "fim.rate is 'much'"),
    ],
)
def test_what_is_missing_or_impossible_is_refused(corpus, options, says):
    with pytest.raises(ConfigError, match=says):
        dataset(corpus, **options)


def test_a_rate_of_0_needs_nothing(corpus):
    assert dataset(corpus, fim=0, fim_tokens=None, end_token=None).fim is None


def test_marks_of_a_tokenizer_are_found_by_their_names():
    plain = train_bpe(["some text"] * 9, 300)
    assert HuggingFaceTokenizer(plain, "<|endoftext|>", "plain").fim_tokens is None
    for names in (
        ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
        ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
    ):
        marked = Tokenizer.from_str(plain.to_str())
        marked.add_special_tokens([AddedToken(name, special=True) for name in reversed(names)])
        found = HuggingFaceTokenizer(marked, "<|endoftext|>", "marked")
        assert found.fim_tokens == tuple(marked.token_to_id(name) for name in names)


def components(corpus, tmp_path, **data):
    config = load_config(
        {
            "corpus": str(corpus), "run_dir": str(tmp_path / "run"), "model": {"preset": "nano"},
            "policy": {"name": "natural"}, "data": {"global_batch_size": 8, **data}, "train": {"device": "cpu"},
        }
    )  # fmt: skip
    import torch

    return build_components(config, DistributedContext(0, 1, torch.device("cpu")))


def test_the_keys_of_a_training_config(corpus, tmp_path):
    made = components(corpus, tmp_path, fim={"code": {"rate": 0.5, "spm_rate": 1.0}}, fim_tokens=[257, 258, 319])
    assert made.loader.dataset.domains[made.loader.dataset.names.index("code")].fim == FillInMiddle(0.5, 1.0)
    batch = next(iter(made.loader))
    made.loader.close()
    assert (batch["tokens"] == 319).any()
    assert made.corpus.tokenizer.decode([65, 257, 66]) == "A<|257|>B"
    with pytest.raises(ConfigError, match=r"'data.fim_tokens' is \[257, 258, 320\], but the model has 320 tokens"):
        components(corpus, tmp_path, fim={"code": 0.5}, fim_tokens=[257, 258, 320])
    with pytest.raises(ConfigError, match=r"'data.fim': no domain 'cod' \(did you mean 'code'"):
        components(corpus, tmp_path, fim={"cod": 0.5}, fim_tokens=[257, 258, 259])
    with pytest.raises(ConfigError, match="the tokenizer has none by a known name"):
        components(corpus, tmp_path, fim={"code": 0.5})

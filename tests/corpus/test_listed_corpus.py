"""corpus.yaml: domains of every format in one corpus, for the data set and the command line; mistakes are named."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

import ado_stream as ado
from ado_stream.cli.main import main
from ado_stream.corpus import listed_checker
from ado_stream.prepare.coordinator import prepare
from ado_stream.prepare.prepare_config import PrepareConfig
from ado_stream.stream import flat_index
from tests.stream.flat_data import make_documents, samples_of, write_megatron, write_raw
from tests.stream.helpers import ledger, run

T = 15
VOCABULARY, END = 257, 256  # the byte tokenizer's


def documents(number: int, count: int = 120) -> list[np.ndarray]:
    """Documents of bytes that end with the byte tokenizer's end token."""
    return [np.append(tokens[:-1] % 256, END) for tokens in make_documents(number, count)]


def write_streaming(folder: Path, tokens: np.ndarray, column: str, encoding: str) -> None:
    """An MDS data set as other projects write it: another column beside, no hashes."""
    from tests.mds_writer import MDSWriter

    dtype = {"bytes": np.int64}.get(encoding, np.uint16)
    with MDSWriter(out=str(folder), columns={"source": "str", column: encoding}, size_limit=3000) as writer:
        for number, row in enumerate(samples_of(tokens, T)):
            row = row.astype(dtype)
            writer.write({"source": f"doc{number}", column: row.tobytes() if encoding == "bytes" else row})


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """(corpus.yaml, {domain: its samples}); every path in it is relative."""
    monkeypatch.setattr(flat_index, "SHARD_BYTES", 1000)
    tokens = {name: np.concatenate(documents(number)) for number, name in enumerate(("web", "code", "math", "parts"))}
    write_megatron(tmp_path / "data" / "web", documents(0))
    write_raw(tmp_path / "data" / "code" / "0.npy", tokens["code"])
    write_raw(tmp_path / "data" / "code-val.npy", np.concatenate(documents(9, 40)))
    write_streaming(tmp_path / "data" / "math", tokens["math"], "ids", "bytes")
    for part, begin in (("a", 0), ("b", 1500)):
        write_streaming(
            tmp_path / "data" / "parts" / part,
            tokens["parts"][begin : begin + 1500],
            "tokens",
            f"ndarray:uint16:{T + 1}",
        )
    content = {
        "seq_len": T,
        "tokenizer": "bytes",
        "domains": {
            "web": {"format": "megatron", "path": "data/web", "weight": 3},
            "code": {
                "format": "npy",
                "path": "data/code",
                "token_dtype": "uint16",
                "weight": 2,
                "val": "data/code-val.npy",
            },
            "math": {"format": "mds", "path": "data/math", "token_column": "ids", "weight": 1},
            "parts": {"path": "data/parts", "weight": 1, "token_dtype": "uint16"},
        },
    }
    path = tmp_path / "corpus.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    rows = {name: samples_of(values, T) for name, values in tokens.items()}
    halves = [samples_of(tokens["parts"][begin : begin + 1500], T) for begin in (0, 1500)]
    return path, {**rows, "parts": np.concatenate(halves)}


@pytest.mark.parametrize(
    ("domain", "val"),
    [("code", "data/code"), ("code", "data/code/0.npy"), ("web", "data/../data"), ("math", "data/math")],
)
def test_held_out_data_that_are_trained_on_are_refused(listed, domain, val):
    path, _ = listed
    content = yaml.safe_load(path.read_text())
    content["domains"][domain]["val"] = val
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ado.ConfigError, match=f"domain '{domain}': val, .* is in the path of domain"):
        ado.open_corpus(str(path))


@pytest.mark.parametrize("how", ["link to a file", "hard link", "link to a folder", "copy with hashes", "folder above"])
def test_held_out_data_are_recognised_by_any_path(listed, write_jsonl, tmp_path, how):
    path, _ = listed
    content = yaml.safe_load(path.read_text())
    code, data = content["domains"]["code"], tmp_path / "data"
    if how == "link to a file":
        (data / "code" / "1.npy").symlink_to(data / "code-val.npy")
    elif how == "hard link":
        (data / "held.npy").hardlink_to(data / "code" / "0.npy")
        code["val"] = "data/held.npy"
    elif how == "link to a folder":
        (data / "held").mkdir()
        (data / "code-val.npy").rename(data / "held" / "0.npy")
        (data / "code" / "link").symlink_to(data / "held")
        code["val"] = "data/held"
    else:
        texts = write_jsonl(tmp_path / "p.jsonl", [{"text": f"text {n} " * 9} for n in range(40)])
        prepare(PrepareConfig((str(texts),), str(tmp_path / "out"), seq_len=T, val_frac=0.3, workers=1))
        shutil.copytree(tmp_path / "out" / "p" / "val", data / "copy")
        trained = "p/val" if how == "copy with hashes" else "p"
        content["domains"] = {"a": {"path": f"out/{trained}", "val": "data/copy"}}
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ado.ConfigError, match=r"domain '(a|code)': val, .*data/.*, is in the path of domain"):
        ado.open_corpus(path)


@pytest.mark.parametrize("how", ["folder above", "hard link", "copy with hashes"])
def test_data_of_two_domains_are_refused(listed, write_jsonl, tmp_path, how):
    path, _ = listed
    content = yaml.safe_load(path.read_text())
    if how == "folder above":
        content["domains"] = {name: content["domains"][name] for name in ("code", "web")}
        del content["domains"]["code"]["val"]
        content["domains"]["web"] = {**content["domains"]["code"], "path": "data/code/0.npy"}
    elif how == "hard link":
        (tmp_path / "data" / "held.npy").hardlink_to(tmp_path / "data" / "code" / "0.npy")
        content["domains"]["more"] = {**content["domains"]["code"], "path": "data/held.npy"}
        del content["domains"]["more"]["val"]
    else:
        texts = write_jsonl(tmp_path / "p.jsonl", [{"text": f"text {n} " * 9} for n in range(40)])
        prepare(PrepareConfig((str(texts),), str(tmp_path / "out"), seq_len=T, workers=1))
        shutil.copytree(tmp_path / "out" / "p" / "train", tmp_path / "copy")
        content["domains"] = {"a": {"path": "out/p/train"}, "b": {"path": "copy"}}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(ado.ConfigError, match=r"domain '\w+': .* is in domain '\w+', too\.\n"):
        ado.open_corpus(path)


pytestmark = pytest.mark.filterwarnings("ignore:.*the index holds no hashes:UserWarning")


def edit(path: Path, change) -> Path:
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_a_listed_corpus_streams_every_format(listed, tmp_path, monkeypatch):
    path, rows = listed
    monkeypatch.chdir("/")  # paths are relative to the file
    corpus = ado.open_corpus(path)
    assert [domain.name for domain in corpus.domains] == list(rows)
    assert (corpus.seq_len, corpus.tokenizer.end_id) == (T, END)
    data = ado.AdaptiveStreamingDataset(corpus, 8, positions=True, end_token=END)
    np.testing.assert_allclose(data.prior, np.array([3, 2, 1, 1]) / 7)
    assert data.num_samples.tolist() == [len(each) for each in rows.values()]
    whole = np.concatenate(list(rows.values()))
    for batch in run(data, 30):
        np.testing.assert_array_equal(batch["tokens"], whole[data.sample_ids(batch["step"])])
    assert [domain.name for domain in ado.open_corpus(path, "val").domains] == ["code"]


def test_a_state_of_a_listed_corpus_goes_on_where_it_was(listed):
    path, _ = listed
    data = ado.AdaptiveStreamingDataset(ado.open_corpus(path), 8)
    run(data, 10, close=False)
    state = json.loads(json.dumps(data.state_dict()))
    expected = ledger(run(data, 10))
    again = ado.AdaptiveStreamingDataset(ado.open_corpus(path), 8)
    again.load_state_dict(state)
    assert ledger(run(again, 10)) == expected


def test_a_cache_folder_is_for_what_is_remote_or_may_have_to_be_unpacked(listed, tmp_path):
    path, _ = listed
    by_name = {domain.name: domain for domain in ado.open_corpus(path, cache_dir=tmp_path / "cache").domains}
    assert by_name["web"].remote is None
    assert by_name["math"].local == str(tmp_path / "cache" / "math")
    first = ledger(run(ado.AdaptiveStreamingDataset(ado.open_corpus(path), 8), 40))  # every shard is read
    cached = ado.open_corpus(path, cache_dir=tmp_path / "cache")
    assert ledger(run(ado.AdaptiveStreamingDataset(cached, 8), 40)) == first
    assert list((tmp_path / "cache" / "math").rglob("*.mds"))


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # merge_index leaves its files open
def test_an_index_that_streaming_merged_is_the_same_data(listed, tmp_path):
    from streaming.base.util import merge_index

    path, rows = listed
    fingerprint = ado.open_corpus(path).manifest["domains"]["parts"]["fingerprint"]
    merge_index(str(tmp_path / "data" / "parts"), keep_local=True)
    corpus = ado.open_corpus(path)
    assert corpus.manifest["domains"]["parts"]["fingerprint"] == fingerprint


def test_a_prepared_domain_may_be_listed_and_the_tokenizer_lie_beside_the_file(tmp_path, prepare_texts):
    made = prepare_texts(tmp_path, {"a/x.txt": "hello there " * 200}, "--tokenizer", "bpe:260", "--seq-len", "31")
    shutil.copy(made / "tokenizer.json", tmp_path)
    shutil.copy(made / "tokenizer_config.json", tmp_path)
    content = {"seq_len": 31, "tokenizer": "tokenizer.json", "domains": {"a": {"path": "corpus/a/train"}}}
    (tmp_path / "corpus.yml").write_text(yaml.safe_dump(content))
    listed, prepared = ado.open_corpus(tmp_path / "corpus.yml"), ado.open_corpus(made)
    assert listed.tokenizer.fingerprint == prepared.tokenizer.fingerprint
    batches = [ledger(run(ado.AdaptiveStreamingDataset(corpus, 4), 5)) for corpus in (listed, prepared)]
    assert batches[0] == batches[1]


def test_padding_of_a_listed_domain_is_left_out_of_targets_where_the_list_says_so(tmp_path, prepare_texts):
    texts = {f"a/{n}.txt": "hello there " * n for n in range(1, 30)}
    made = prepare_texts(tmp_path, texts, "--seq-len", "31", "--packing", "best-fit")
    content = {"seq_len": 31, "tokenizer": "bytes", "domains": {"a": {"path": "corpus/a/train"}}}
    found = []
    for packing in ("best-fit", "join"):
        path = tmp_path / "corpus.yaml"
        path.write_text(yaml.safe_dump({**content, "packing": packing}))
        (batch,) = run(ado.AdaptiveStreamingDataset(ado.open_corpus(path), global_batch_size=64), 1)
        found.append(batch)
    (expected,) = run(ado.AdaptiveStreamingDataset(ado.open_corpus(made), global_batch_size=64), 1)
    assert (expected["targets"] == -100).any()
    np.testing.assert_array_equal(found[0]["targets"], expected["targets"])
    assert "targets" not in found[1]


def test_info_says_what_the_formats_say(listed, capsys):
    path, rows = listed
    assert main(["info", str(path), "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert {name: entry["splits"]["train"]["samples"] for name, entry in manifest["domains"].items()} == {
        name: len(each) for name, each in rows.items()
    }
    web = manifest["domains"]["web"]
    total = len(np.concatenate(documents(0)))
    assert web["documents"] == 120  # of its .idx
    assert web["splits"]["train"]["tokens"] == T * len(rows["web"]) + 1
    assert web["splits"]["train"]["tokens"] + web["splits"]["train"]["dropped_tokens"] == total
    assert main(["info", str(path)]) == 0
    table = capsys.readouterr().out
    assert re.search(r"code +- +- +[\d,]+ ", table)
    assert re.search(r"web +120 +- ", table)


def test_preview_decodes_and_lint_finds_nothing(listed, capsys):
    path, rows = listed
    assert main(["preview", str(path), "--samples", "1", "--domain", "web", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["text"] == ado.open_corpus(path).tokenizer.decode(rows["web"][shown["sample"]])
    assert main(["preview", str(path), "--batches", "1", "--mixture", "code=1", "--batch-size", "2"]) == 0
    assert capsys.readouterr().out.count("domain") == 0
    assert main(["lint", str(path)]) == 0
    assert "no problem" in capsys.readouterr().out


def test_lint_lists_every_problem(listed, capsys):
    path, _ = listed
    web, code = path.parent / "data" / "web.bin", path.parent / "data" / "code" / "0.npy"
    tokens = np.fromfile(web, "<u2")
    end = np.flatnonzero(tokens == END)[7]
    tokens[end] = 3
    tokens.tofile(web)
    others = np.fromfile(code, "<u2")
    others[[10, 2000]] = 300
    others.tofile(code)
    assert main(["lint", str(path), "--json"]) == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert len(problems) == 3
    assert re.search(
        r"DataError: domain 'web' web.bin from byte \d+: document 7 ends with token 3, not with", problems[0]
    )
    assert all(re.search(r"token 300 outside the vocabulary of 257", problem) for problem in problems[1:])
    # An end token that only the data have is no problem once it is given.
    assert listed_checker.ListedChecker(str(edit(path, lambda c: c.update(end_token=3)))).manifest["seq_len"] == T


MISTAKES = {
    r"keys missing: tokenizer": lambda c: c.pop("tokenizer"),
    r"domains: 'code': keys missing: path": lambda c: c["domains"]["code"].pop("path"),
    r"seq_len 'long': expected a count": lambda c: c.update(seq_len="long"),
    r"seq_len is 0; expected a whole number, 1 or more": lambda c: c.update(seq_len=0),
    r"unknown option 'tokeniser' \(did you mean 'tokenizer'\?\)": lambda c: c.update(tokeniser="bytes"),
    r"domain 'web': unknown option 'wieght' \(did you mean 'weight'": lambda c: c["domains"]["web"].update(wieght=1),
    r"domain 'web': format is 'bin'; expected one of mds": lambda c: c["domains"]["web"].update(format="bin"),
    r"domain 'web': prior is -1": lambda c: c["domains"]["web"].update(weight=-1),
    r"domain 'web' has no prior, others have": lambda c: c["domains"]["web"].pop("weight"),
    r"have the same data": lambda c: c["domains"]["web"].update(c["domains"]["code"], path="data/./code"),
    r"packing is 'tight'; expected one of join, best-fit": lambda c: c.update(packing="tight"),
    r"end_token 999; the tokenizer has 257 tokens": lambda c: c.update(end_token=999),
    r"no domains": lambda c: c.update(domains={}),
    r"s4://x: not a URL that can be read": lambda c: c["domains"]["code"].update(path="s4://x"),
    r"domain 'math': no column 'tokens'": lambda c: c["domains"]["math"].pop("token_column"),
    r"samples of 16 tokens; seq_len 31 needs 32": lambda c: (
        c.update(seq_len=31),
        [c["domains"].pop(k) for k in ("web", "math", "code")],
    ),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_in_the_file_is_named(listed, message):
    path, _ = listed
    edit(path, MISTAKES[message])
    with pytest.raises(ado.AdoStreamError) as caught:
        ado.AdaptiveStreamingDataset(ado.open_corpus(path), 8)
    assert re.search(message, str(caught.value))
    assert len(str(caught.value).splitlines()) <= 3


def test_samples_of_another_length_are_found_where_only_the_shards_say_it(listed):
    path, _ = listed
    edit(path, lambda c: (c.update(seq_len=20), c.update(domains={"math": c["domains"]["math"]})))
    data = ado.AdaptiveStreamingDataset(ado.open_corpus(path), 8)
    data.start(0, 0)
    with pytest.raises(ado.DataError, match="16 tokens a sample; other shards, or seq_len, have 21"):
        data.next_batch()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seq_len: [", "not YAML"),
        ("- a list", "a corpus is a mapping of keys to values, not a list"),
        ("seq_len: 1\nseq_len: 2", "found duplicate key seq_len"),
        (
            "tokenizer: !!python/object/apply:os.system [true]",
            "not YAML: ConstructorError: could not determine a constructor",
        ),
    ],
)
def test_a_file_that_is_not_a_list_of_domains_is_refused(tmp_path, text, message):
    (tmp_path / "corpus.yaml").write_text(text)
    with pytest.raises(ado.ConfigError, match=message):
        ado.open_corpus(tmp_path / "corpus.yaml")


def test_a_split_that_no_domain_has_is_refused(listed):
    path, _ = listed
    with pytest.raises(ado.ConfigError, match="no domain has split 'val'. Give domains a path under 'val'"):
        ado.open_corpus(edit(path, lambda c: c["domains"]["code"].pop("val")), "val")
    with pytest.raises(ado.NotFound, match="nowhere.yaml"):
        ado.open_corpus(path.parent / "nowhere.yaml")

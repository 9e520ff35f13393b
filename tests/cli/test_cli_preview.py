"""`ado-stream preview`: the text of samples, by domain, evenly over the corpus."""

import json

import pytest

from ado_stream.cli.main import main
from ado_stream.corpus import open_corpus
from ado_stream.loader import AdaptiveLoader
from tests.train.tiny_model import train_tiny


@pytest.fixture(scope="module")
def corpus(prepare_texts, tmp_path_factory):
    texts = {"count.txt": "".join(f"{n:09}\n" for n in range(8000)), "other.txt": "y" * 100}
    return str(prepare_texts(tmp_path_factory.mktemp("made"), texts, "--seq-len", "9", "--shard-mb", "0.03"))


def test_samples_are_the_text_at_their_places(corpus, capsys):
    assert main(["preview", corpus, "--domain", "count", "--samples", "4", "--json"]) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [sample["sample"] for sample in shown] == [1000, 3000, 5000, 7000]  # the middles of four quarters
    assert [sample["text"] for sample in shown] == [f"{n:09}\n" for n in (1000, 3000, 5000, 7000)]


def test_every_domain_is_shown_and_long_samples_are_cut(corpus, capsys):
    assert main(["preview", corpus, "--samples", "1", "--characters", "3"]) == 0
    shown = capsys.readouterr().out
    assert "--- count, sample 4000, 10 tokens\n000 ...\n" in shown
    assert "--- other, sample 5, 10 tokens\nyyy ...\n" in shown


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--samples=0", "--samples is 0; expected a whole number, 1 or more"),
        ("--characters=-1", "--characters is -1; expected a whole number, 0 or more"),
        ("--batches=-1", "--batches is -1; expected a whole number, 1 or more"),
        ("--batches=99999999999999999999", "--batches is 99999999999999999999; expected a whole number, 9"),
        ("--batches=1 --batch-size=0", "--batch-size is 0; expected a whole number, 1 or more"),
        ("--batches=1 --batch-size=1099511627776", "global_batch_size is 1099511627776; expected a whole number, 16"),
    ],
)
def test_numbers_that_cannot_be_are_refused(corpus, option, says, capsys):
    assert main(["preview", corpus, *option.split()]) == 1
    assert says in capsys.readouterr().err


def test_no_more_samples_are_shown_than_there_are(corpus, capsys):
    assert main(["preview", corpus, "--domain", "other", "--samples", "1000000000000", "--json"]) == 0
    assert [json.loads(line)["sample"] for line in capsys.readouterr().out.splitlines()] == list(range(10))


def test_an_unknown_domain_is_named_with_those_there_are(corpus, capsys):
    assert main(["preview", corpus, "--domain", "wiki"]) == 1
    assert capsys.readouterr().err.startswith("ConfigError: split 'train': no domain 'wiki'; there are: count, other.")
    assert main(["preview", corpus, "--domain", "cuont"]) == 1
    assert "split 'train': no domain 'cuont' (did you mean 'count'?); there are" in capsys.readouterr().err


def test_batches_are_those_of_the_stream_under_the_mixture(corpus, capsys):
    options = ["--batches", "3", "--batch-size", "4", "--mixture", "count=0.75,other=0.25"]
    assert main(["preview", corpus, *options, "--json"]) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["step"], row["slot"]) for row in shown] == [(step, slot) for step in range(3) for slot in range(4)]
    for step in range(3):
        domains = [row["domain"] for row in shown if row["step"] == step]
        assert (domains.count("count"), domains.count("other")) == (3, 1)
    assert all(row["text"].startswith("yyy") for row in shown if row["domain"] == "other")
    counted = [row["text"] for row in shown if row["domain"] == "count"]
    assert len(set(counted)) == len(counted) == 9


def test_a_mixture_that_cannot_be_read_is_said(corpus, capsys):
    assert main(["preview", corpus, "--batches", "1", "--mixture", "count"]) == 1
    assert "expected NAME=WEIGHT" in capsys.readouterr().err
    assert main(["preview", corpus, "--batches", "1", "--mixture", "wiki=1"]) == 1
    assert "no domain 'wiki'" in capsys.readouterr().err


def test_escape_sequences_in_names_and_texts_are_made_visible(tmp_path, capsys):
    hostile = "\x1b]52;c;aGk=\x07\u202e\x9b2J"
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": f"{hostile} text\n" * 9, "set": f"{hostile}\n"}) + "\n")
    arguments = ["--out", str(tmp_path / "c"), "--workers", "1", "--seq-len", "9", "--domain-key", "set"]
    assert main(["prepare", str(tmp_path / "in.jsonl"), *arguments]) == 0
    for verb in (["info"], ["preview"], ["preview", "--json"], ["info", "--json"], ["lint"]):
        assert main([verb[0], str(tmp_path / "c"), *verb[1:]]) == 0
    shown = capsys.readouterr()
    assert not set("\x1b\x07\u202e\x9b") & set(shown.out + shown.err.replace("\x1b[?25", ""))
    for one_line in ("\\n  ", "\\n, sample "):  # of the table, of a sample's title
        assert f"\\x1b]52;c;aGk=\\x07\\u202e\\x9b2J{one_line}" in shown.out
    assert main(["preview", str(tmp_path / "c"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["domain"] == f"{hostile}\n"


@pytest.fixture
def run(corpus, tmp_path, monkeypatch):
    """(a run of 9 steps whose mixture moves, the text of every batch that it trained on)."""
    texts, observe = [], AdaptiveLoader._next
    tokenizer = open_corpus(corpus).tokenizer

    def recorded(loader):
        batch = observe(loader)
        names = loader.dataset.names
        rows = zip(batch["domain"].tolist(), batch["tokens"].numpy(), strict=True)
        texts.append([(names[domain], tokenizer.decode(row)) for domain, row in rows])
        return batch

    config = {
        "corpus": corpus, "run_dir": str(tmp_path / "run"), "seed": 3, "model": {"preset": "tiny"},
        "data": {"global_batch_size": 6, "canonical_nodes": 2, "prefetch": 0, "mixture_lag": 1},
        "policy": {"name": "odm", "prior": {"count": 1.0, "other": 2.0}}, "train": {"steps": 9, "device": "cpu"},
    }  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(AdaptiveLoader, "_next", recorded)
        train_tiny(config)
    return tmp_path / "run", texts


def test_a_step_of_a_run_is_what_it_trained_on(run, capsys):
    run_dir, texts = run
    capsys.readouterr()
    for step in (0, 4, 8):
        assert main(["preview", str(run_dir), "--step", str(step), "--json"]) == 0
        shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [(row["domain"], row["text"]) for row in shown] == texts[step]
        assert [(row["step"], row["slot"]) for row in shown] == [(step, slot) for slot in range(6)]
    assert texts[4] != texts[8]


def test_a_step_that_cannot_be_drawn_again_is_said(run, capsys):
    run_dir, _ = run
    for step in (9, -1):
        assert main(["preview", str(run_dir), f"--step={step}"]) == 1
        assert f"--step {step}: " in (error := capsys.readouterr().err)
        assert "recorded steps 0 to 8" in error
    record = run_dir / "record.jsonl"
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    for line in lines:
        if line["kind"] == "step" and line["step"] == 3:
            line["samples"] = [6, 0]
    record.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["preview", str(run_dir), "--step", "3"]) == 1
    assert "but [6, 0] were recorded" in capsys.readouterr().err
    record.write_text("".join(json.dumps(line) + "\n" for line in lines if line.get("step") != 1))
    assert main(["preview", str(run_dir), "--step", "3"]) == 1
    assert "a step is drawn again from all before it" in capsys.readouterr().err

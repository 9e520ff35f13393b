"""`ado-stream preview`: the text of samples, by domain, evenly over the corpus."""

import json

import pytest

from ado_stream.cli.main import main


@pytest.fixture
def corpus(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/count.txt").write_text("".join(f"{n:09}\n" for n in range(8000)))
    (tmp_path / "in/other.txt").write_text("y" * 100)
    arguments = ["--out", str(tmp_path / "c"), "--workers", "1", "--seq-len", "9", "--shard-mb", "0.03", "--json"]
    assert main(["prepare", str(tmp_path / "in"), *arguments]) == 0
    capsys.readouterr()
    return str(tmp_path / "c")


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


def test_an_unknown_domain_is_named_with_those_there_are(corpus, capsys):
    assert main(["preview", corpus, "--domain", "wiki"]) == 1
    assert capsys.readouterr().err.startswith(
        "ConfigError: no domain 'wiki' in split 'train'; there are: count, other."
    )

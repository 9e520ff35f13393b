"""`ado-stream info`: a corpus' sizes as a table, and as corpus.json."""

import json

import numpy as np
import pytest

from ado_stream.cli.info import print_corpus
from ado_stream.cli.main import main
from ado_stream.corpus.manifest import missing_validation


@pytest.fixture
def corpus(prepare_texts, tmp_path):
    texts = {f"{name}.txt": "x" * (size - 1) for name, size in (("small", 300), ("large", 700))}  # and the end token
    return prepare_texts(tmp_path, texts, "--seq-len", "99")


def test_the_table_has_every_domain_largest_first(corpus, capsys):
    capsys.readouterr()
    assert main(["info", str(corpus)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line.split()[0] in ("large", "small")]
    assert rows == [
        ["large", "1", "0.00", "700", "7", "70.00%", "0"],
        ["small", "1", "0.00", "300", "3", "30.00%", "0"],
    ]
    assert "2 domains, 2 documents" in lines[-2]
    assert lines[-1].startswith("no validation text: no validation loss is measured")


def test_names_that_look_like_markup_and_narrow_windows_lose_nothing(corpus, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    manifest = json.loads((corpus / "corpus.json").read_bytes())
    domains = manifest["domains"]
    manifest["domains"] = {"[/large]": domains["large"], "[bold]": domains["small"]}
    manifest["refused"] = {"[/a] reason": 3}
    capsys.readouterr()
    print_corpus(manifest, as_json=False)
    _, large, small, _, _, refused = capsys.readouterr().out.splitlines()
    assert large.split() == ["[/large]", "1", "0.00", "700", "7", "70.00%", "0"]
    assert small.split() == ["[bold]", "1", "0.00", "300", "3", "30.00%", "0"]
    assert refused == "left out: 3 x [/a] reason"


def test_json_is_corpus_json(corpus, capsys):
    capsys.readouterr()
    assert main(["info", str(corpus), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((corpus / "corpus.json").read_bytes())


def test_no_corpus_is_exit_1(tmp_path, capsys):
    assert main(["info", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("NotFound: ")


def test_a_planned_run_has_epochs_and_tokens(corpus, capsys):
    """7 and 3 samples of 99 tokens: 5 steps of 4 samples each from both are 10/7 and 10/3 epochs."""
    capsys.readouterr()
    plan = ["info", str(corpus), "--policy", "uniform", "--steps", "5", "--batch-size", "4"]
    assert main([*plan, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["domains"]
    first = 4 * np.array([0.7, 0.3])  # the first step is drawn by the prior
    for name, samples, size in (("large", first[0] + 8, 7), ("small", first[1] + 8, 3)):
        assert found[name]["epochs"] == pytest.approx(samples / size, rel=1e-12)
        assert found[name]["tokens"] == round(samples * 99)
        assert found[name]["share"] == pytest.approx(samples / 20, rel=1e-12)
    assert main(plan) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["domain", "small", "large", "5"]
    guarded = [*plan, "--option", "guards=[{name: pin, shares: {small: 0}}]", "--json"]
    assert main(guarded) == 0
    assert json.loads(capsys.readouterr().out)["domains"]["small"]["epochs"] == pytest.approx(first[1] / 3, rel=1e-12)
    assert main(["info", str(corpus), "--steps", "5"]) == 1
    assert "needs both --policy NAME and --steps N" in capsys.readouterr().err


@pytest.mark.parametrize(("has", "says"), [((), "no validation text: "), (("small",), "no validation text of large: ")])
def test_domains_without_validation_text_are_named(has, says):
    domains = {name: {"splits": {"val": {"samples": int(name in has)}}} for name in ("large", "small")}
    assert missing_validation(domains).startswith(says)
    assert missing_validation({name: domains[name] for name in has}) == ""


def test_doctor_and_info_count_the_same_tokens(corpus, capsys):
    capsys.readouterr()
    main(["doctor", "--url", str(corpus), "--json"])
    (found,) = [each for each in json.loads(capsys.readouterr().out)["findings"] if each["name"] == str(corpus)]
    main(["info", str(corpus)])
    assert found["value"] == "2 domains, 1,000 training tokens"
    assert "1,000 training tokens" in capsys.readouterr().out

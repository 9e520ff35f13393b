"""The README's code runs, its figures are those of the experiments; tests and benchmarks that are named exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PROMISES, FIGURES = ((ROOT / "docs" / name).read_text() for name in ("promises.md", "figures.md"))


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def small_corpus(prepare_texts, tmp_path, monkeypatch):
    """A corpus of two domains, in the folder `corpus` of the current directory."""
    words = {"a": "alpha beta ", "b": "one two three "}
    texts = {f"{name}/{n}.txt": word * (300 + n) for name, word in words.items() for n in range(6)}
    monkeypatch.chdir(tmp_path)
    return prepare_texts(tmp_path, texts, "--seq-len", "32")


def test_the_python_runs_as_it_stands(small_corpus):
    (code,) = blocks("python")
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["batch"]["step"] == 19
    assert names["policy"].step == 20


def by_size(scenario, policy, corpus="ten"):
    """The difference to the natural mixture by corpus size that the page of the experiments has."""
    page = (ROOT / "docs" / "learning.md").read_text()
    section = page.split(f"### {corpus}, {scenario}:")[1].split("###")[0]
    (row,) = re.findall(rf"^\| {policy} \| \d+ \| (\S+) ", section, re.MULTILINE)
    return float(row)


def test_the_sentence_on_what_it_pays_has_the_figures_of_the_experiments():
    sentence = README.split("**Does it pay?**")[1].split("## ")[0]
    unlearnable = [f"unlearnable-{share}" for share in (10, 20, 40)]
    figures = [
        *(-by_size(scenario, "target") for scenario in unlearnable),
        *(-by_size(scenario, "oracle") for scenario in unlearnable),
        by_size("clean", "target"),
        by_size("clean", "ado"),
        *(-by_size("unlearnable-20", policy, "ten_medium") for policy in ("target", "oracle")),
    ]
    assert [float(number) for number in re.findall(r"\d\.\d{3}", sentence)] == figures


def test_the_figures_of_the_summary_are_those_of_their_page():
    (row,) = (line for line in README.splitlines() if "(docs/figures.md)" in line)
    figures = re.findall(r"\d[\d.]* (?:times|%)|\d+ were met, \d+ missed", row)
    assert len(figures) == 5
    assert [figure for figure in figures if figure not in FIGURES] == []


def test_every_test_that_a_promise_names_exists():
    named = re.findall(r"`([\w/]*test_\w+\.py)?(?:::(test_\w+))?`", PROMISES)
    path = None
    for name, function in named:
        path = name or path  # `::test_x`: of the file named before
        if path:
            found = list((ROOT / "tests").glob(path)) or list((ROOT / "tests").glob(f"*/{path}"))
            assert found, path
            assert not function or f"def {function}(" in found[0].read_text(), f"{path}::{function}"
    assert len(named) > 20


def test_it_is_short():
    assert README.count("\n") <= 200


def test_every_benchmark_that_is_named_exists():
    from benchmarks.__main__ import modules

    named = set(re.findall(r"python -m benchmarks (\w+)", FIGURES))
    assert len(named) > 10
    assert named <= modules().keys()
    for module in re.findall(r"python -m (benchmarks(?:\.\w+)+)", FIGURES):
        path = ROOT.joinpath(*module.split("."))
        assert path.with_suffix(".py").exists() or path.is_dir(), module

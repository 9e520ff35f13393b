"""`ado-stream demo` from end to end: complete, repeatable, resumed where it stopped."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ado_stream.cli.demo import _show_text
from ado_stream.cli.main import main
from ado_stream.demo.demo_plan import CLEAN, POLICIES
from ado_stream.demo.environment_files import UNLEARNABLE
from ado_stream.demo.outcome import conclusion
from ado_stream.demo.raw_text import DomainText
from ado_stream.errors import ConfigError
from ado_stream.record import read_run


def numbers_of(run_dir):
    """What a run computed: everything of its steps, fits and validations but the clock."""
    about, lines = read_run(run_dir)
    timed = ("time_s", "tokens_per_s")
    kept = [line for kind in ("step", "fit", "eval") for line in lines[kind]]
    return about["corpus"]["fingerprint"], [{k: v for k, v in line.items() if k not in timed} for line in kept]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A quick demo of the fewest steps."""
    out = tmp_path_factory.mktemp("demo") / "first"
    assert main(["demo", "--quick", "--steps", "40", "--out", str(out)]) == 0
    return out


def test_a_folder_that_looks_like_markup_is_shown_as_it_is(monkeypatch, capsys):
    def stopped(*_):
        raise ConfigError("stopped")

    monkeypatch.setattr("ado_kernels.numba_cache.compile_in_background", lambda group: None)
    monkeypatch.setattr("ado_stream.demo.demo_run.run_demo", stopped)
    assert main(["demo", "--out", "[/a]"]) == 1
    assert "writes to [/a] only" in capsys.readouterr().out


def test_the_table_of_the_text_is_whole_in_a_narrow_window(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "20")
    _show_text([DomainText("a long name of a domain", Path(), 1234, 5, 3_000_000)])
    assert "a long name of a domain  1,234          5  3.00  100.0 %" in capsys.readouterr().out


@pytest.mark.slow
def test_everything_is_there(demo):
    report = (demo / "report" / "report.html").read_text()
    assert "natural" in report
    assert report.count("<svg ") >= 6
    manifest = json.loads((demo / "corpus" / "corpus.json").read_text())
    assert len(manifest["domains"]) >= 6
    for name, domain in manifest["domains"].items():
        assert (domain["splits"].get("val", {}).get("samples", 0) > 0) == (name != UNLEARNABLE)
    for run in (*POLICIES, *CLEAN):
        about, lines = read_run(demo / "runs" / run.replace(" ", "-"))
        assert about["policy"] == CLEAN.get(run, run)
        assert len(lines["step"]) == 40
        assert lines["eval"][-1]["step"] == 40
        losses = dict(zip(about["domains"], lines["eval"][-1]["domain_loss"], strict=True))
        assert [name for name, loss in losses.items() if loss is None] == [UNLEARNABLE]
        drawn = np.sum([line["samples"] for line in lines["step"]], axis=0)[about["domains"].index(UNLEARNABLE)]
        assert (drawn > 0) == (run not in CLEAN)


def test_the_conclusion_says_what_the_losses_say():
    def run(hashes):
        return SimpleNamespace(samples_SK=np.array([[100 - hashes, hashes]]), domains=["code", UNLEARNABLE])

    runs = {"natural": run(30), "target": run(5)}
    better = conclusion(runs, {"natural": 4.5, "target": 4.3}, {"natural": 4.2, "target": 4.2})
    assert "hashes (30% of the text); target gave them 5% of the run and ended 0.20 nats lower" in better
    assert "changed nothing" in better
    harmed = conclusion(runs, {"natural": 4.5, "target": 4.3}, {"natural": 4.2, "target": 4.26})
    assert "it cost 0.060 nats" in harmed
    lower = conclusion(runs, {"natural": 4.5, "target": 4.3}, {"natural": 4.2, "target": 4.192})
    assert "it ended lower by 0.008 nats" in lower
    level = conclusion(runs, {"natural": 4.5, "target": 4.499}, {"natural": 4.2, "target": 4.2})
    assert "target did not beat natural" in level


@pytest.mark.slow
def test_ado_moved_the_mixture_and_natural_did_not(demo):
    mixtures = {
        policy: [line["mixture"] for line in read_run(demo / "runs" / policy)[1]["step"]]
        for policy in ("ado", "natural")
    }
    prior = pytest.approx(mixtures["natural"][0], rel=1e-12)  # stream and policy each divide it by its sum
    assert mixtures["natural"][-1] == prior
    assert mixtures["ado"][0] == prior
    assert mixtures["ado"][-1] != mixtures["ado"][0]
    assert min(mixtures["ado"][-1]) >= 0.01 - 1e-12


@pytest.mark.slow
def test_same_seed_same_numbers(demo, tmp_path, capsys):
    assert main(["demo", "--quick", "--steps", "40", "--out", str(tmp_path / "again"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["report"] == str(tmp_path / "again" / "report" / "report.html")
    for policy in ("ado", "natural"):
        assert numbers_of(tmp_path / "again" / "runs" / policy) == numbers_of(demo / "runs" / policy)


@pytest.mark.slow
def test_a_finished_demo_is_not_repeated(demo, capsys):
    def steps():  # with their clock times: a run done again would have others
        return [read_run(demo / "runs" / policy)[1]["step"] for policy in ("ado", "natural")]

    before = steps()
    assert main(["demo", "--quick", "--steps", "40", "--out", str(demo)]) == 0
    assert "(resumed)" in capsys.readouterr().out
    assert steps() == before


@pytest.mark.slow
def test_other_settings_in_the_same_folder_are_refused(demo, capsys):
    assert main(["demo", "--quick", "--steps", "41", "--out", str(demo)]) == 1
    assert "other settings (steps 40)" in capsys.readouterr().err

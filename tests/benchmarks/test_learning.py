"""The learning benchmark: a trial in parts gives the numbers of a whole one; table and page against numbers by hand."""

import itertools
import json
import math
import random
import statistics
from types import SimpleNamespace

import numpy as np
import pytest

import ado_stream as ado
from ado_stream.prepare.coordinator import prepare
from ado_stream.prepare.prepare_config import PrepareConfig
from benchmarks import bench_learning
from benchmarks.learning import mechanism, outcome
from benchmarks.learning import trial as trial_module
from benchmarks.learning.scenarios import CONTROL, SCENARIOS, SENSITIVITY, UNLEARNABLE, Sizes
from benchmarks.learning.trial import OutOfTime, Trial

TOY = Sizes(1, 16, 2, batch_size=8, steps=80, seq_len=16, tokenizer="bytes", val_rows=8)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two domains that a model of bytes can learn, and random bytes in base64's letters."""
    folder = tmp_path_factory.mktemp("learning")
    generator = random.Random(4)
    words = {"tales": ["once ", "upon ", "a ", "time "], "sums": ["1+1=2 ", "2+2=4 "], UNLEARNABLE: "abcdefghijklmnop"}
    for split, documents in (("train", 60), ("val", 12)):
        with (folder / f"{split}.jsonl").open("w") as out:
            for name, letters in words.items():
                if split == "train" or name != UNLEARNABLE:
                    for _ in range(documents):
                        text = "".join(generator.choices(letters, k=60))
                        out.write(json.dumps({"text": text, "domain": name}) + "\n")
    config = PrepareConfig(
        (str(folder / "train.jsonl"),), str(folder / "corpus"), TOY.seq_len, tokenizer=TOY.tokenizer,
        domain_key="domain", val=(str(folder / "val.jsonl"),), workers=1,
    )  # fmt: skip
    prepare(config)
    return folder / "corpus"


def _branch(corpus, home, spec, deadline=None):
    home.mkdir(parents=True, exist_ok=True)
    return Trial(corpus, SCENARIOS["unlearnable-40"], 1, TOY, home, deadline).branch(spec)


@pytest.mark.parametrize(
    "spec",
    [
        "target:start_step=10,ignore_steps=2",
        pytest.param("ado:interval=4", marks=pytest.mark.slow),
        pytest.param(CONTROL, marks=pytest.mark.slow),
    ],
)
def test_a_trial_stopped_in_the_middle_and_resumed_gives_the_same_numbers(corpus, tmp_path, monkeypatch, spec):
    """A first part of 6 steps ends within the shared beginning, later ones of 24 steps within the branch."""
    whole = _branch(corpus, tmp_path / "whole", spec)
    parts = tmp_path / "parts"
    stopped = []
    while True:
        clock = itertools.count()
        monkeypatch.setattr(trial_module, "time", SimpleNamespace(time=lambda clock=clock: next(clock)))
        try:
            resumed = _branch(corpus, parts, spec, deadline=22 if stopped else 4)
            break
        except OutOfTime as error:
            stopped.append(str(error))
    assert stopped == ["beginning: step 6 of 8", *(f"{spec}: step {step} of 80" for step in (30, 54, 78))]
    assert resumed == whole
    assert [path.name for path in parts.iterdir()] == [".beginning.pt"]


def test_a_replayed_policy_has_the_cells_mixtures(corpus, tmp_path):
    for spec in ("target:start_step=10,ignore_steps=2", "ado:interval=4"):
        cell = json.loads(json.dumps(_branch(corpus, tmp_path, spec)))
        trial = Trial(corpus, SCENARIOS["unlearnable-40"], 1, TOY, tmp_path)
        *_, policy = trial.replay(spec, cell)
        assert dict(zip(trial.names, policy.mixture.tolist(), strict=True)) == cell["mixture"]


def test_laws_of_validation_losses_are_fitted_to_validations_within_the_trial(corpus, tmp_path):
    cell = _branch(corpus, tmp_path, "target:laws=validation,start_step=10,ignore_steps=2")
    assert cell["health"]["refits"] > 3
    with_training_losses = _branch(corpus, tmp_path, "target:start_step=10,ignore_steps=2")
    assert cell["health"]["middle_elasticity"] != with_training_losses["health"]["middle_elasticity"]


class _Recorded:
    """Stands for a trial whose domains follow laws over their own samples, exactly; `useless` has nothing to teach."""

    def __init__(self, useless=False):
        self._prior = {"a": 0.5, "b": 0.3, "c": 0.2}
        beta_K = np.array([1.0, 1.1, 0.001 if useless else 0.9])
        policy, losses, samples = self._policy("target"), [], []
        generator, own_K = np.random.default_rng(2), np.zeros(3)
        for _ in range(600):
            count_K = generator.multinomial(32, policy.mixture).astype(float)
            loss_K = 1.5 + beta_K * (np.maximum(own_K + count_K / 2, 1.0) / 1e3) ** -0.4
            policy.update(loss_K, count_K)
            own_K += count_K
            losses.append(loss_K.tolist())
            samples.append(count_K.tolist())
        self.cell = {"policy": "target", "losses": losses, "samples": samples}

    def _policy(self, spec):
        options = dict(pair.split("=") for pair in spec.partition(":")[2].split(",") if pair)
        options = {name: float(value) if "." in value else int(value) for name, value in options.items()}
        return ado.make_policy("target", self._prior, total_steps=600, **options)

    replay = Trial.replay


def test_forecasts_of_laws_that_hold_exactly_come_true_and_rank_the_gains():
    recorded = _Recorded()
    found = mechanism.check_laws(recorded, recorded.cell)
    assert found["refits"] > 10
    assert found["miss_after"] < 0.01
    assert found["rank_correlation"] > 0.9
    assert found["at_bound"] is None


def test_settings_change_nothing_where_all_domains_learn_alike_and_something_where_one_is_useless():
    alike, useless = _Recorded(), _Recorded(useless=True)
    trials = [("clean", alike, {"target": alike.cell}), ("unlearnable-20", useless, {"target": useless.cell})]
    found = mechanism.check_corpus(trials)
    assert found["unchanged"]["clean"] == {"seeds": 1, "settings": sorted(SENSITIVITY)}
    assert "target:strength=2" not in found["unchanged"]["unlearnable-20"]["settings"]
    assert [row["scenario"] for row in found["laws"]] == ["clean", "unlearnable-20"]
    assert mechanism.laws_table(found["laws"]).count("\n") == 3


def test_a_checkpoint_of_other_sizes_is_refused(corpus, tmp_path):
    Trial(corpus, SCENARIOS["unlearnable-40"], 1, TOY, tmp_path)._beginning()
    longer = Sizes(1, 16, 2, batch_size=8, steps=90, seq_len=16, tokenizer="bytes", val_rows=8)
    with pytest.raises(SystemExit, match="of runs of other sizes"):
        Trial(corpus, SCENARIOS["unlearnable-40"], 1, longer, tmp_path).branch("natural")


def _cell(policy, seed, by_size, small, midway=()):
    """A cell of two domains, tokens 3 to 1; bits per byte are half the loss."""
    loss = {"big": by_size, "small": small}
    validation = {"loss": loss, "bits_per_byte": {name: value / 2 for name, value in loss.items()}}
    late = {str(step): {"loss": {"big": value, "small": value}, "bits_per_byte": loss} for step, value in midway}
    facts = {"names": ["big", "small"], "measured": ["big", "small"], "wanted": ["big"], "size": {"big": 3, "small": 1}}
    return {"policy": policy, "seed": seed, "final": validation, "midway": late, "facts": facts}


@pytest.fixture
def runs(tmp_path):
    """Two seeds of three policies on clean text, and one with an oracle, as the benchmark writes them."""
    falls = [(720, 4.0), (840, 3.6), (960, 3.4), (1080, 3.2)]
    early = [(720, 3.4), (840, 3.1), (960, 3.0), (1080, 2.9)]
    cells = {
        "clean": [  # policy, seed, losses of big and small
            _cell("natural", 1, 3.0, 4.0, falls), _cell("uniform", 1, 3.2, 3.6, falls),
            _cell("odm", 1, 3.4, 3.6, early),
            _cell("natural", 2, 3.1, 4.0, falls), _cell("uniform", 2, 3.1, 3.8, falls),
        ],
        "unlearnable-40": [
            _cell("natural", 1, 3.4, 4.4, falls), _cell("target", 1, 3.1, 4.1, early),
            _cell("oracle", 1, 3.0, 4.0, early),
        ],
    }  # fmt: skip
    for scenario, found in cells.items():
        for cell in found:
            home = tmp_path / "toy" / scenario / str(cell["seed"])
            home.mkdir(parents=True, exist_ok=True)
            (home / f"{cell['policy']}.json").write_text(json.dumps(cell))
    return tmp_path


def test_rows_are_paired_differences_with_students_interval(runs):
    found = bench_learning.read_corpus(runs / "toy")
    rows = {row["policy"]: row for row in outcome.table(*found["clean"])}
    assert list(rows) == ["natural", "uniform", "odm"]
    # by size: 3/4 of +0.2 and 1/4 of -0.4 in the first seed; 0 and -0.2 in the second
    pair = [0.75 * 0.2 - 0.25 * 0.4, -0.25 * 0.2]
    half = 12.706 * statistics.stdev(pair) / math.sqrt(2)
    assert rows["uniform"]["by size"] == pytest.approx((statistics.fmean(pair), half))
    assert rows["uniform"]["mean"] == pytest.approx((-0.1, 0.0), abs=1e-12)
    assert rows["uniform"]["worst"][0] == pytest.approx(-0.3)
    assert rows["uniform"]["wanted"][0] == pytest.approx(0.1)
    assert rows["uniform"]["bits per byte"][0] == pytest.approx(statistics.fmean(pair) / 2)
    assert rows["odm"]["by size"] == (pytest.approx(0.2), None)
    # natural is at 3.2 after 1080 steps; odm falls from 3.4 to 3.1 between 720 and 840
    assert rows["odm"]["steps to baseline"][0] == pytest.approx((720 + 120 * 2 / 3) / 1080)
    against_uniform = {row["policy"]: row for row in outcome.table(*found["clean"], baseline="uniform")}
    assert against_uniform["odm"]["by size"][0] == pytest.approx(0.75 * 0.2)


def test_the_page_its_pictures_and_the_summaries_come_from_the_cells_alone(runs, monkeypatch, capsys):
    docs = runs / "docs"
    docs.mkdir()
    (docs / "policies.md").write_text("before\n<!-- learning -->\nold\n<!-- /learning -->\nafter\n")
    (runs / "README.md").write_text("no marks here\n")
    page = docs / "learning.md"
    command = ["bench_learning", "--out", str(runs), "--name", "toy", "--docs", str(page)]
    written = []
    for _ in range(2):
        monkeypatch.setattr("sys.argv", command)
        bench_learning.main()
        written.append({path.name: path.read_text() for path in docs.iterdir()})
    assert written[0] == written[1]
    assert written[0].keys() == {
        "learning.md", "policies.md", "learning_planes_toy_light.svg", "learning_planes_toy_dark.svg"
    }  # fmt: skip
    text = written[0]["learning.md"]
    assert "## Corpus `toy`: 2 domains, 0 M tokens" in text
    assert "| policy | seeds | wanted domains | by size |" in text
    assert "| odm | 1 | +0.400 | +0.200 | +0.000 | -0.400 | +0.100 | 0.74 |" in text
    assert "Rivals less the uniform mixture" in text
    assert "`target` ends below natural (-0.300) by size, 75% of the oracle's gain" in text
    assert "Nothing that was tried is below natural by size." in text
    assert "Lowest in the mean of domains: `uniform`, -0.100 ± 0.000." in text
    summary = written[0]["policies.md"]
    assert summary.startswith("before\n<!-- learning -->\n| corpus and scenario")
    assert "| toy, unlearnable-40 | 1 | -0.300 |" in summary
    assert "old" not in summary
    assert summary.endswith("<!-- /learning -->\nafter\n")
    assert (runs / "README.md").read_text() == "no marks here\n"
    assert all(label in written[0]["learning_planes_toy_dark.svg"] for label in ("odm", "uniform", "target"))
    assert capsys.readouterr().out == ""


def test_a_part_that_comes_too_late_runs_nothing(corpus, tmp_path):
    assert not bench_learning.run_trial(corpus, tmp_path, "unlearnable-40", 1, TOY, ["natural"], deadline=0.0)
    assert list(tmp_path.rglob("*")) == []

"""`ado-stream replay`: another policy on a run record, and the run's own policy giving its own mixtures."""

import json

import numpy as np
import pytest

import ado_stream as ado
from ado_stream.cli.main import main
from ado_stream.record import RunRecord

NAMES, PRIOR, LAG, STEPS = ["web", "code", "math"], [0.6, 0.3, 0.1], 2, 60
OPTIONS = {"start_step": 10, "interval": 10, "ignore_steps": 0}


@pytest.fixture
def run_dir(tmp_path):
    """A run of ADO recorded as training does it."""
    generator = np.random.default_rng(0)
    policy = ado.make_policy("ado", dict(zip(NAMES, PRIOR, strict=True)), total_steps=STEPS, **OPTIONS)
    said = [policy.mixture] * (LAG + 1)
    about = {"version": 1, "domains": NAMES, "prior": PRIOR, "policy": "ado", "mixture_lag": LAG, "steps": STEPS}
    with RunRecord(tmp_path / "run") as record:
        record.write("run", **about, global_batch_size=64, policy_options=OPTIONS)
        for step in range(STEPS):
            counts = generator.multinomial(64, said[step])
            losses = np.array([2.0, 1.0, 3.0]) + 3.0 * (step + 1) ** -np.array([0.3, 0.5, 0.1])
            losses = np.where(counts > 0, losses * (1 + 0.01 * generator.standard_normal(3)), np.nan)
            record.write("step", step=step, loss=2.0, domain_loss=losses, samples=counts, mixture=said[step])
            said.append(policy.update(losses, counts))
    return tmp_path / "run", np.array(said[:STEPS])


def test_the_runs_own_policy_gives_the_recorded_mixtures(run_dir, capsys):
    path, mixture_TK = run_dir
    options = [word for key, value in OPTIONS.items() for word in ("--option", f"{key}={value}")]
    assert main(["replay", str(path), "--policy", "ado", *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    np.testing.assert_array_equal(found["mixture"], mixture_TK)  # JSON keeps float64 to the bit
    assert np.ptp(mixture_TK[:, 0]) > 0.01
    assert found["health"]["refits"] == 4  # at 20, 30, 40, 50: at 10 there are six points


def test_another_policy_is_tabled_and_drawn(run_dir, tmp_path, capsys):
    picture = tmp_path / "replay.png"
    assert main(["replay", str(run_dir[0]), "--policy", "odm", "--plot", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "60 steps of run (policy ado), replayed with odm" in printed
    assert all(name in printed for name in NAMES)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_guards_are_an_option_of_any_policy(run_dir, capsys):
    path, mixture_TK = run_dir
    option = "guards=[{name: ceiling, maximum: 0.4}]"
    for policy, options in (("natural", {}), ("ado", OPTIONS)):
        words = [word for key, value in options.items() for word in ("--option", f"{key}={value}")]
        assert main(["replay", str(path), "--policy", policy, *words, "--option", option, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["guards"] == [{"name": "ceiling", "maximum": 0.4}]
        assert found["options"] == options
        later_TK = np.array(found["mixture"])[LAG + 1 :]
        assert mixture_TK[LAG + 1 :].max() > 0.41
        assert later_TK.max() == pytest.approx(0.4, rel=1e-12)
    assert main(["replay", str(path), "--policy", "natural", "--option", "guards=floor"]) == 1
    assert "guards: 'floor'; expected a list" in capsys.readouterr().err


def test_a_directory_without_a_record_is_named(tmp_path, capsys):
    assert main(["replay", str(tmp_path), "--policy", "odm"]) == 1
    assert "NotFound" in capsys.readouterr().err


def test_a_policy_that_lacks_an_option_says_which(run_dir, capsys):
    assert main(["replay", str(run_dir[0]), "--policy", "doremi"]) == 1
    assert "'reference_losses' is missing" in capsys.readouterr().err

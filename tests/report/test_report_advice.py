"""What to do now: each finding from a record that shows it, and from one that does not."""

import pytest

from ado_stream.record import RunRecord
from ado_stream.report.advice import advice
from ado_stream.report.comparison import seed_noise
from ado_stream.report.run_data import load_runs

NAMES = ["web", "code"]


def record(run_dir, steps=10, samples=(6, 2), size=1000, fit_at=None, observed=2.0, health=None, events=(), **run):
    with RunRecord(run_dir) as out:
        corpus = {"fingerprint": "f", "domains": {name: {"tokens": 9, "samples": size} for name in NAMES}}
        line = {"policy": "ado", "prior": [0.75, 0.25], "steps": steps, "global_batch_size": 8, "corpus": corpus, **run}
        out.write("run", version=1, domains=NAMES, **line)
        for step in range(steps):
            out.write("step", step=step, loss=2.0, domain_loss=[observed] * 2, samples=samples, mixture=[0.75, 0.25])
            if step == fit_at:  # a law that is 2 everywhere
                law = {"log_beta": [-50.0] * 2, "log_eps": [0.6931471805599453] * 2, "alpha": [0.5] * 2}
                out.write("fit", step=step, n=8 * (step + 1), objective=[0.1] * 2, **law)
        if health:
            out.write("health", step=steps - 1, health=health)
        for name in events:
            out.write("event", step=steps - 1, name=name, detail={})
    return run_dir


HEALTH = {
    "refits": 1, "failed_refits": 0, "ignored_losses": dict.fromkeys(NAMES, 0), "held_laws": dict.fromkeys(NAMES, 0),
    "at_bound": {"code": ["log_eps"]}, "forecast_error": dict.fromkeys(NAMES, {"mean": 0.0, "mean_abs": 0.0}),
}  # fmt: skip


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "run: too short for laws: 10 steps and no fit. Train longer, or fit earlier: policy.options.start_step."),
        ({"fit_at": 5}, "Nothing in the record stands out."),
        ({"policy": "natural"}, "Nothing in the record stands out."),
        ({"fit_at": 5, "observed": 2.2}, "run: half-way forecasts off by more than 5 %: web +10.0 %, code +10.0 %."),
        ({"fit_at": 5, "observed": 2.08}, "Nothing in the record stands out."),
        (
            {"fit_at": 5, "size": 12},
            "run: read more than 4 times: web 5.0 times. Past that repeated text teaches little",
        ),
        (
            {"fit_at": 5, "health": HEALTH},
            "run: laws at a bound of the fit, so that their forecasts are the bound's: code",
        ),
        ({"fit_at": 5, "planned": 20}, "run: at step 10 of 20. The same train command resumes it."),
        ({"fit_at": 5, "events": ["skip", "skip"]}, "run: 2 steps were skipped for losses that are not finite."),
    ],
)
def test_each_finding(tmp_path, given, sentence):
    given = dict(given)
    if "planned" in given:
        steps = given.pop("planned")
        run_dir = record(tmp_path / "run", **given)
        path = run_dir / "record.jsonl"
        path.write_text(path.read_text().replace('"steps":10', f'"steps":{steps}', 1))
    else:
        run_dir = record(tmp_path / "run", **given)
    (found,) = advice(load_runs([run_dir]))
    assert found.startswith(sentence)


def test_adaptive_behind_natural(simulate, tmp_path):
    simulate(tmp_path / "natural", NAMES, policy="natural", steps=50)
    for worse in (1.05, 0.95):
        text = (tmp_path / "natural" / "record.jsonl").read_text().replace('"natural"', '"odm"')
        head, _, line = text.rpartition('{"kind":"eval"')
        (tmp_path / "odm").mkdir(exist_ok=True)
        (tmp_path / "odm" / "record.jsonl").write_text(head + '{"kind":"eval"' + _scaled(line, worse))
        found = " ".join(advice(load_runs([tmp_path / "odm", tmp_path / "natural"])))
        assert ("odm ends behind natural" in found) == (worse > 1)


def _scaled(line, factor):
    """The rest of an eval line with its domains' losses multiplied."""
    import json

    head, _, rest = line.partition('"domain_loss":[')
    values, _, tail = rest.partition("]")
    return f'{head}"domain_loss":{json.dumps([float(value) * factor for value in values.split(",")])}{tail}'


def test_noise_of_seeds_is_pooled_over_runs_that_differ_in_their_seed_alone(tmp_path):
    """Deviations by hand: 2.0 and 2.2 of one policy, 3.0, 3.1 and 3.2 of another; a third has one seed."""
    finals = {("a", 1): 2.0, ("a", 2): 2.2, ("b", 1): 3.0, ("b", 2): 3.1, ("b", 3): 3.2, ("c", 1): 9.0}
    for (policy, seed), loss in finals.items():
        run_dir = record(tmp_path / f"{policy}{seed}", policy=policy, seed=seed)
        with RunRecord(run_dir) as out:
            out.write("eval", step=10, split="val", loss=loss, domain_loss=[loss, 1.0], domain_tokens=[8, 8])
    noise = seed_noise(load_runs([tmp_path]))
    squares = 2 * 0.1**2 + 2 * 0.1**2
    assert noise["web"] == pytest.approx((squares / 3) ** 0.5, rel=1e-12)
    assert noise["code"] == 0.0
    assert seed_noise(load_runs([tmp_path / "a1", tmp_path / "b1"])) == {}

"""A run folder of any bytes: record, config, checkpoint and policy state end well or with a typed error."""

import json
import shutil
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import strategies as st

from ado_stream.cli.main import main
from ado_stream.errors import AdoStreamError
from ado_stream.evaluate.trained_run import open_run
from ado_stream.policy import state_codec
from ado_stream.policy.policy_registry import make_policy
from ado_stream.record import RunRecord
from ado_stream.report.run_data import load_runs
from ado_stream.simulate.closed_loop import read_spec
from ado_stream.train import checkpoint_commit
from ado_stream.train.dry_run import plan_run
from ado_stream.train.run_config import load_config
from ado_stream.train.run_control import RunControl, submit
from ado_stream.train.trainer import run_training
from ado_stream.yaml_files import read_yaml
from tests.fuzz.mutations import changed, changed_file, changed_yaml, damaged, fuzz
from tests.report.conftest import write_simulated
from tests.train.conftest import settings  # noqa: F401
from tests.train.hot_loop import ONE_CPU


def test_fuzz_run_record(settings, tmp_path, capsys):  # noqa: F811
    """Of a run that was resumed and recorded losses of samples, read by all that reads a record."""
    config = settings | {"log": {"sample_losses": 2}}
    for steps in (6, 8):
        run_training(load_config(config | {"train": {"steps": steps, "device": "cpu"}}))
    run = Path(settings["run_dir"])
    other = write_simulated(tmp_path / "other", ["easy", "hard", "medium"], steps=120)
    record = run / "record.jsonl"
    lines = record.read_bytes().splitlines()
    kinds = sorted({json.loads(line)["kind"] for line in lines})
    commands = [
        ["replay", str(run), "--policy", "ado"], ["trace", str(run), "--spikes"], ["trace", str(run), "--step", "6"],
        ["trace", str(run), "--step", "7", "--rank", "0", "--highest", "1"], ["control", str(run)],
        ["report", str(run), str(other), "--out", str(tmp_path / "page")],
    ]  # fmt: skip

    def check(data):
        kind = data.draw(st.sampled_from(kinds))
        numbers = [number for number, line in enumerate(lines) if json.loads(line)["kind"] == kind]
        number = data.draw(st.sampled_from(numbers))
        forged = [*lines]
        forged[number] = changed_file(data, lines[number])
        content = b"\n".join(forged) + b"\n"
        record.write_bytes(damaged(data, content) if data.draw(st.integers(0, 7)) == 0 else content)
        with suppress(AdoStreamError):
            load_runs([run])
        *quick, report = commands
        command = data.draw(st.sampled_from(quick)) if data.draw(st.integers(0, 7)) else report  # takes a second
        assert main(command) in (0, 1)
        capsys.readouterr()

    fuzz(check, 30)


def test_fuzz_run_config(settings, tmp_path):  # noqa: F811
    import dataclasses

    whole = dataclasses.asdict(load_config(settings))
    whole["policy"]["prior"] = {"easy": 1, "hard": 2.0, "medium": 1}
    whole["policy"]["guards"] = [{"name": "floor", "share": 0.01}]
    path = tmp_path / "config.yaml"

    def check(data):
        path.write_bytes(changed_yaml(data, whole))
        with suppress(AdoStreamError):
            plan_run(load_config(path), ONE_CPU)

    fuzz(check)


def test_fuzz_specs(tmp_path):
    whole = {
        "steps": 50, "seed": 1, "global_batch_size": 8, "mixture_lag": 2, "noise": 0.1, "wanted": {"a": 1, "b": 2.0},
        "domains": {name: {"prior": 1, "eps": 1.0, "beta": 9.0, "alpha": 0.2, "samples": 9} for name in "ab"},
        "policies": {"natural": {}, "ado": {"start_step": 10, "guards": [{"name": "floor", "minimum": 0.01}]}},
    }  # fmt: skip
    path = tmp_path / "spec.yaml"

    def check(data):
        path.write_bytes(changed_yaml(data, whole))
        with suppress(AdoStreamError):
            spec = read_spec(read_yaml(path, "spec", resolve=True))
            for label in spec.policies:
                spec.make(label)

    fuzz(check)


def test_fuzz_losses(tmp_path, capsys):
    """The table that `fit` reads."""
    path = tmp_path / "losses.csv"
    content = "\n".join(["samples,a,b", *(f"{n * 32},{2 + n**-0.3:.4f},{3 + n**-0.5:.4f}" for n in range(1, 60))])

    def check(data):
        path.write_bytes(damaged(data, content.encode()))
        assert main(["fit", str(path), "--ignore-steps", "0", "--every", "1", "--smooth-window", "3"]) in (0, 1)
        capsys.readouterr()

    fuzz(check)


@pytest.mark.parametrize("name", ["order", "answer"])
def test_fuzz_orders(settings, capsys, name):  # noqa: F811
    """An operator's order to a run, and the run's answer, as they lie in its folder."""
    run = Path(settings["run_dir"])
    with RunRecord(run) as record:
        record.write("run", version=1, domains=["easy", "hard", "medium"])
    path = submit(run, ["pin", "hard=0.5"])
    contents = {"order": path.read_bytes(), "answer": b'{"step": 3, "drawn_from": 6}'}
    policy = make_policy("natural", {"easy": 0.5, "hard": 0.3, "medium": 0.2})
    loader = SimpleNamespace(policy=policy, dataset=SimpleNamespace(mixture_lag=2))

    def check(data):
        answer = path.with_name(path.name.replace(".order.", ".answer."))
        answer.unlink(missing_ok=True)
        (path if name == "order" else answer).write_bytes(changed_file(data, contents[name]))
        assert main(["control", str(run)]) in (0, 1)
        with suppress(AdoStreamError):
            orders = RunControl(run, loader, lambda step, detail: None)
            orders.repeat()
            orders.read()
        capsys.readouterr()

    fuzz(check)


@pytest.fixture
def trained(settings):  # noqa: F811
    """A config of a run with checkpoints, and its newest one."""
    run_training(load_config(settings | {"train": {"steps": 8, "device": "cpu"}}))
    return settings, Path(settings["run_dir"]) / "checkpoints" / "step_00000008"


@pytest.mark.parametrize("name", ["state.json", "COMMIT.json", "tensors"])
def test_fuzz_checkpoint(trained, tmp_path, name):
    """Of state.json and the tensors, with the marker that a forger would write."""
    config, checkpoint = trained
    kept = shutil.copytree(config["run_dir"], tmp_path / "kept")
    place = checkpoint / name if name != "tensors" else next(checkpoint.glob("*.safetensors"))
    content = place.read_bytes()

    def check(data):
        shutil.rmtree(config["run_dir"])
        shutil.copytree(kept, config["run_dir"])
        place.write_bytes(changed_file(data, content) if name != "tensors" else damaged(data, content))
        if name != "COMMIT.json":
            checkpoint_commit.commit(checkpoint)
        with suppress(AdoStreamError):
            open_run(config["run_dir"])
        with suppress(AdoStreamError):
            run_training(load_config(config | {"train": {"steps": 9, "device": "cpu"}}))

    fuzz(check, 6)  # each trains; make fuzz tries them for minutes


@pytest.mark.parametrize("kind", ["ado", "target", "odm", "doremi", "episelect", "gap", "velocitune", "aioli"])
def test_fuzz_policy_state(kind):
    """Forged states have the checksum of what they hold."""

    def make():
        return make_policy(kind, {"a": 0.5, "b": 0.3, "c": 0.2}, **OPTIONS.get(kind, {}))

    generator = np.random.default_rng(0)
    policy = make()
    losses = 3 + generator.random((40, 3))
    for loss_K in losses:
        policy.update(loss_K, [3, 3, 2])
    state = json.loads(json.dumps(policy.state_dict()))

    def check(data):
        forged = changed(data, state)
        if isinstance(forged, dict) and data.draw(st.integers(0, 7)):
            forged.pop("crc32", None)
            with suppress(Exception):
                forged["crc32"] = state_codec._crc32(forged)
        loaded = make()
        with suppress(AdoStreamError):
            loaded.load_state_dict(forged, names=data.draw(st.sampled_from([None, ["a", "b", "c"]])))
            for loss_K in losses[:3]:
                mixture_K = loaded.update(loss_K, [3, 3, 2])
                assert np.isfinite(mixture_K).all()
                assert mixture_K.sum() == pytest.approx(1)  # of three float64
            loaded.health()

    fuzz(check)


OPTIONS = {
    "ado": {"start_step": 10, "interval": 5, "ignore_steps": 0},
    "doremi": {"reference_losses": {"a": 2.0, "b": 2.5, "c": 3.0}},
    "gap": {"target_losses": {"a": 2.0, "b": 2.5, "c": 3.0}, "start_step": 10},
    "velocitune": {"target_losses": {"a": 2.0, "b": 2.5, "c": 3.0}, "start_step": 10},
}

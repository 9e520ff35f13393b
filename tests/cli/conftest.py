"""A folder in which the example of each verb works: text, a config, losses; with `prepared` a corpus and a run, too."""

import json
import random
import shlex

import pytest
import yaml

from ado_stream.cli import main as cli

SETTINGS = {
    "corpus": "corpus",
    "run_dir": "runs/unnamed",
    "model": {"preset": "nano"},
    "data": {"global_batch_size": 4},
    "policy": {"name": "natural"},
    "train": {"steps": 5, "device": "cpu"},
    "evaluate": {"max_samples_per_domain": 2},
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """text/ of two domains, config.yaml, losses.csv; the examples run in it one after the other."""
    place = tmp_path_factory.mktemp("examples")
    words = random.Random(5).choices([f"word{n}" for n in range(200)], k=9000)
    for name, part in (("web", words[:6000]), ("code", words[6000:])):
        (place / "text" / name).mkdir(parents=True)
        lines = [json.dumps({"text": " ".join(part[at : at + 100])}) for at in range(0, len(part), 100)]
        (place / "text" / name / "part.jsonl").write_text("\n".join(lines) + "\n")
    (place / "config.yaml").write_text(yaml.safe_dump({**SETTINGS, "seed": 1}))
    rows = [f"{32 * n},{2 + 20 * (32 * n) ** -0.4}" for n in range(1, 60)]
    (place / "losses.csv").write_text("\n".join(["samples,web", *rows]) + "\n")
    return place


def run_example(verb):
    arguments = shlex.split(cli.VERBS[verb][1])
    if ">" in arguments:
        arguments = arguments[: arguments.index(">")]
    return cli.main([verb, *arguments])


@pytest.fixture(scope="session")
def prepared(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_example("prepare") == 0
        assert run_example("train") == 0
    return folder

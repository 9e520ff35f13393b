"""docs/trainers.md: the blocks run as they stand; those of trainers that are not installed are in their examples."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "trainers.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+)\n((?:(?!^## ).*\n)*)", PAGE, re.MULTILINE))


def block(section: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", SECTIONS[section], re.DOTALL)
    return code


@pytest.fixture
def run(prepare_texts, tmp_path, monkeypatch):
    """A function: the names of a section's block after it ran beside a corpus of the domains a and b."""
    texts = {
        f"{name}/{n}.txt": word * (300 + n) for name, word in {"a": "alpha ", "b": "one two "}.items() for n in range(6)
    }
    prepare_texts(tmp_path, texts, "--seq-len", "32")
    monkeypatch.chdir(tmp_path)

    def run(section):
        names: dict = {}
        exec(compile(block(section), f"docs/trainers.md, {section}", "exec"), names)
        return names

    return run


# Of the frameworks themselves: advice on workers, missing loggers and devices.
quiet = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


@quiet
@pytest.mark.parametrize("section", ["Hugging Face's Trainer", "Lightning"])
def test_a_trainer_trains(run, section):
    names = run(section)
    assert names["loader"].step == 10
    names["loader"].flush()
    assert names["loader"].policy.step == 10


@quiet
def test_accelerate_trains_and_resumes(run):
    names = run("accelerate")
    loader, accelerator = names["loader"], names["accelerator"]
    assert loader.step == 20
    accelerator.load_state("accelerated")
    assert loader.step == 10
    assert loader.policy.step == 10


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata 0.11 calls it
def test_torchdata_resumes(run):
    names = run("torchdata")
    assert [batch["step"] for batch in names["before"]] == list(range(5))
    assert names["after"]["step"] == 5


def test_streams_become_domains(run):
    names = run("Streaming")
    assert names["dataset"].prior.tolist() == [0.75, 0.25]
    assert len(names["epoch"]) == names["steps_per_epoch"] > 0
    assert {int((batch["domain"] == 0).sum()) for batch in names["epoch"]} == {6}


@pytest.mark.parametrize(
    ("section", "example"),
    [
        ("torchtitan", "torchtitan_train.py"),
        ("OLMo-core", "olmo_core_train.py"),
        ("Megatron-LM", "megatron_core_train.py"),
    ],
)
def test_the_lines_of_an_example_are_those_of_the_example(section, example):
    """test_real_trainers.py runs it."""
    text = (ROOT / "examples" / example).read_text()
    for part in block(section).split("\n\n"):
        for line in part.splitlines():
            assert line.strip() in text, line
    assert f"examples/{example}" in SECTIONS[section]


def test_every_section_of_the_table_is_there():
    named = re.findall(r"^\| ([\w' -]+) \|", PAGE, re.MULTILINE)
    assert {name for name in named[1:] if name in SECTIONS} == set(SECTIONS)


@pytest.mark.parametrize("adapter", ["torchtitan", "olmo_core", "megatron", "streaming"])
def test_an_adapter_has_at_most_150_lines(adapter):
    assert (ROOT / "ado_stream" / "adapters" / f"{adapter}.py").read_text().count("\n") <= 150

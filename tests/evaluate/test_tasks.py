"""Tasks by lm-evaluation-harness on an exported model: one from local files, offline, against a plain loop."""

import json
import random
from pathlib import Path

import pytest
import torch

import ado_stream as ado
from ado_model import ModelConfig, Transformer
from ado_stream.corpus.tokenizer import load_tokenizer
from ado_stream.errors import ConfigError, StorageError
from ado_stream.evaluate.tasks import USUAL_TASKS, evaluate_tasks

# The harness', its data sets' and its metrics' own.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
NUM_QUESTIONS = 24
TASK = """
task: which_word
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}]
"""


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(3)
    model = Transformer(ModelConfig(num_layers=1, width=32, num_heads=2, vocab_size=320, context_length=128))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture
def questions(tmp_path: Path, monkeypatch) -> list[dict]:
    """Written to files as a task, with every way out to the network closed."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    generator = random.Random(0)
    words = ["cat", "house", "seven", "blue", "running", "why"]
    asked = [
        {"question": f"Question {number}: which word?", "choices": generator.sample(words, 3), "answer": number % 3}
        for number in range(NUM_QUESTIONS)
    ]
    (tmp_path / "tasks").mkdir()
    data = tmp_path / "tasks" / "test.jsonl"
    data.write_text("".join(json.dumps(each) + "\n" for each in asked))
    (tmp_path / "tasks" / "which_word.yaml").write_text(TASK.format(data=data))
    return asked


@torch.no_grad()
def log_probability(model: Transformer, context: str, continuation: str) -> float:
    """Of the continuation's bytes after the context's."""
    before, after = list(context.encode()), list(continuation.encode())
    tokens = torch.tensor([before + after])
    log_p_TV = model(tokens)[0].log_softmax(-1)
    return sum(log_p_TV[len(before) + place - 1, byte].item() for place, byte in enumerate(after))


def test_a_local_task_is_what_a_plain_loop_finds(model: Transformer, questions: list[dict], tmp_path: Path):
    tokenizer = load_tokenizer("bytes")
    exported = ado.export_hugging_face(model, tmp_path / "exported", tokenizer)
    found = evaluate_tasks(exported, ["which_word"], str(tmp_path / "tasks"))
    right = 0
    for each in questions:
        scores = [log_probability(model, each["question"], f" {choice}") for choice in each["choices"]]
        right += scores.index(max(scores)) == each["answer"]
    assert 0 < right < NUM_QUESTIONS
    assert found["which_word"]["acc,none"] == pytest.approx(right / NUM_QUESTIONS)


def test_the_usual_tasks_are_the_harness_own():
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    assert [name for name in USUAL_TASKS if not manager.match_tasks([name])] == []


def test_an_unknown_task_is_named(model: Transformer, tmp_path: Path):
    with pytest.raises(ConfigError, match="no task 'hellaswagg'; the usual set is hellaswag, winogrande"):
        evaluate_tasks(tmp_path, ["hellaswagg"])


def test_questions_that_cannot_be_had_are_said_in_one_line(model: Transformer, questions: list[dict], tmp_path: Path):
    """A hub that cannot be reached ends in an OSError just so."""
    exported = ado.export_hugging_face(model, tmp_path / "exported", load_tokenizer("bytes"))
    (tmp_path / "tasks" / "test.jsonl").unlink()
    with pytest.raises(StorageError, match=r"^tasks which_word: .*test\.jsonl.*\n  Task data come from"):
        evaluate_tasks(exported, ["which_word"], str(tmp_path / "tasks"))


def test_a_rank_without_a_result_has_an_empty_one(monkeypatch, tmp_path: Path):
    """The harness returns None on all ranks but the first."""
    monkeypatch.setattr("lm_eval.simple_evaluate", lambda **_: None)
    assert evaluate_tasks(tmp_path, ["sciq"]) == {}

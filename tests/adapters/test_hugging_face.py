"""AdaptiveTrainer with models and settings of other shapes: the same numbers, or a refusal."""

import pytest
import torch
from transformers import TrainerCallback

from ado_stream.errors import CheckpointError, ConfigError, ResumeError
from tests.rounding import rounding
from tests.train.test_train_adapters import adaptive_loader, hugging_face_trainer, qwen


class Wrapped(torch.nn.Module):
    """A causal model of the user's own around Qwen3; returns what `answer` makes of its outputs."""

    def __init__(self, answer):
        super().__init__()
        self.inner, self.answer = qwen(), answer
        self.config = self.inner.config

    def forward(self, input_ids, labels=None):
        return self.answer(self.inner(input_ids=input_ids, labels=labels))


@pytest.mark.parametrize(
    ("make", "wrap"),
    [(qwen, lambda model: torch.compile(model, backend="eager")), (lambda: Wrapped(dict), lambda model: model)],
    ids=["compiled", "own"],
)
def test_smoothed_labels_are_of_the_next_token_whatever_the_models_name(tiny_corpus, tmp_path, make, wrap):
    """Oracle: the formula of smoothing. Trainer alone shifts labels only for models whose names it knows."""
    model, tokens, domain = make().eval(), torch.arange(33).repeat(4, 1), torch.tensor([0, 1, 2, 1])
    with torch.no_grad():
        log_probability = qwen()(tokens).logits[:, :-1].log_softmax(-1)
    target = log_probability.gather(-1, tokens[:, 1:, None]).mean()
    expected = -(0.75 * target + 0.25 * log_probability.mean()).item()
    with adaptive_loader(tiny_corpus) as loader:
        trainer = hugging_face_trainer(loader, tmp_path, model, label_smoothing_factor=0.25)
        found = trainer.compute_loss(wrap(model), {"input_ids": tokens, "domain": domain})
    assert found.item() == pytest.approx(expected, rel=rounding(320))


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (lambda outputs: (outputs.loss, outputs.logits), "got tuple"),
        (lambda outputs: {"loss": outputs.loss}, r"got \['loss'\]"),
        (lambda outputs: {"loss": outputs.loss, "logits": outputs.logits[:, :-1]}, r"got \['loss', 'logits'\]"),
    ],
)
def test_a_model_without_logits_of_each_position_is_refused(tiny_corpus, tmp_path, answer, found):
    with adaptive_loader(tiny_corpus) as loader:
        trainer = hugging_face_trainer(loader, tmp_path, Wrapped(answer), max_steps=1, save_strategy="no")
        with pytest.raises(ConfigError, match=f"needs 'logits' of 33 positions in the model's outputs, {found}"):
            trainer.train()


def masked_language_model():
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(BertConfig(vocab_size=320, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))


def translator():
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(T5Config(vocab_size=320, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))


@pytest.mark.parametrize("make", [masked_language_model, translator])
def test_models_that_do_not_predict_the_next_token_are_refused(tiny_corpus, tmp_path, make):
    """They would be trained to return the token that they are given."""
    with (
        adaptive_loader(tiny_corpus) as loader,
        pytest.raises(ConfigError, match="needs a model that predicts the next token"),
    ):
        hugging_face_trainer(loader, tmp_path, make())


def test_a_checkpoint_without_optimizer_is_not_resumed_from(tiny_corpus, tmp_path):
    """Trainer alone would begin with a new optimizer and the first learning rate, without a word."""
    with adaptive_loader(tiny_corpus) as loader:
        trainer = hugging_face_trainer(loader, tmp_path, max_steps=1, save_steps=1, save_only_model=True)
        trainer.train()
        with pytest.raises(ResumeError, match=r"checkpoint-1: scheduler.pt is missing \(save_only_model\?\)"):
            trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
        with pytest.raises(ResumeError, match="no complete checkpoint"):
            trainer.train(resume_from_checkpoint=True)


def test_a_users_model_that_takes_no_count_trains_as_qwen3_does(tiny_corpus, tmp_path):
    """Two steps in parts; of a model without **kwargs, whose loss Trainer divides by their number."""

    def losses(model):
        with adaptive_loader(tiny_corpus) as loader:
            options = {"max_steps": 2, "save_strategy": "no", "gradient_accumulation_steps": 4}
            trainer = hugging_face_trainer(loader, tmp_path, model, learning_rate=1e-2, **options)
            trainer.train()
            return [each["loss"] for each in trainer.state.log_history if "loss" in each]

    assert losses(Wrapped(dict)) == pytest.approx(losses(qwen()), abs=1e-4)  # logged with four decimals


@pytest.mark.parametrize("event", ["on_step_begin", "on_substep_end", "on_pre_optimizer_step", "on_optimizer_step"])
def test_a_checkpoint_in_the_middle_of_a_step_is_refused(tiny_corpus, tmp_path, event):
    """A resume would leave out the batch that is handed out, since the optimizer has not seen it."""
    save = TrainerCallback()
    setattr(save, event, lambda args, state, control, **_: trainer._save_checkpoint(trainer.model, None))
    with adaptive_loader(tiny_corpus) as loader:
        trainer = hugging_face_trainer(loader, tmp_path, max_steps=2, gradient_accumulation_steps=2)
        trainer.add_callback(save)
        with pytest.raises(CheckpointError, match="in the middle of step 1: a resume would leave its batch out"):
            trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_resumed_run_logs_the_epochs_of_a_whole_one_and_its_samples_a_second(tiny_corpus, tmp_path):
    """Trainer counts epochs from where the process began, and samples by a batch size that is not used."""

    def logged(resume_from_checkpoint=None):
        with adaptive_loader(tiny_corpus) as loader:
            trainer = hugging_face_trainer(loader, tmp_path, max_steps=4, save_steps=2, per_device_train_batch_size=3)
            metrics = trainer.train(resume_from_checkpoint).metrics
        rows_a_step = metrics["train_samples_per_second"] / metrics["train_steps_per_second"]
        assert rows_a_step == pytest.approx(8, rel=0.05)  # both are rounded to three decimals
        return [each["epoch"] for each in trainer.state.log_history if "loss" in each]

    assert logged() == logged(str(tmp_path / "checkpoint-2")) == [0.25, 0.5, 0.75, 1.0]


def test_accumulation_that_is_set_later_splits_the_batch(tiny_corpus, tmp_path):
    with adaptive_loader(tiny_corpus) as loader:
        trainer = hugging_face_trainer(loader, tmp_path, max_steps=2, save_strategy="no")
        trainer.args.gradient_accumulation_steps = 4
        trainer.train()
        assert loader.step == 2


def test_trials_and_new_models_on_a_loader_that_others_have_used_are_refused(tiny_corpus, tmp_path):
    """They would begin in the middle of the data, with a policy that has learned from another model."""
    with adaptive_loader(tiny_corpus) as loader:
        trainer = hugging_face_trainer(loader, tmp_path, max_steps=1, save_strategy="no")
        with pytest.raises(ConfigError, match="cannot search hyperparameters"):
            trainer.train(trial={"learning_rate": 1e-3})
        trainer.model_init = lambda: qwen()
        trainer.train()
        with pytest.raises(ConfigError, match="cannot train a new model of model_init on a loader .* not new"):
            trainer.train()


def test_checkpoints_at_any_time_are_refused(tiny_corpus, tmp_path, monkeypatch):
    from transformers import TrainingArguments

    monkeypatch.setattr(TrainingArguments, "enable_jit_checkpoint", True, raising=False)
    with adaptive_loader(tiny_corpus) as loader, pytest.raises(ConfigError, match="unset enable_jit_checkpoint"):
        hugging_face_trainer(loader, tmp_path)

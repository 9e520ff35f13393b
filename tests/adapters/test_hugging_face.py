"""AdaptiveTrainer with models and settings of other shapes: the same numbers, or a refusal."""

import pytest
import torch

from ado_stream.errors import ConfigError, ResumeError
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

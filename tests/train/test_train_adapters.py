"""Training loops of other frameworks: losses fall, every step is observed, a resumed run has the same losses."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.utils.data import DataLoader

from ado_model import ModelConfig, Transformer
from ado_stream.corpus import open_corpus
from ado_stream.errors import ConfigError
from ado_stream.loader import AdaptiveLoader
from ado_stream.policy.policy_registry import make_policy
from ado_stream.stream.dataset import AdaptiveStreamingDataset
from tests.rounding import rounding

NUM_STEPS = 30
HALF = 15
SIZES = ModelConfig(num_layers=1, width=32, num_heads=2, vocab_size=320, context_length=32)


@contextmanager
def adaptive_loader(corpus) -> Iterator[AdaptiveLoader]:
    domains, _, _ = open_corpus(corpus)
    dataset = AdaptiveStreamingDataset(domains, global_batch_size=8, mixture_lag=2)
    prior = dict(zip(dataset.names, dataset.prior, strict=True))
    policy = make_policy("ado", prior, start_step=4, ignore_steps=0, interval=4, total_steps=NUM_STEPS)
    with AdaptiveLoader(dataset, policy, prefetch=2, io_threads=1) as loader:
        yield loader


@pytest.fixture
def loader(tiny_corpus):
    with adaptive_loader(tiny_corpus) as loader:
        yield loader


def test_plain_pytorch(loader):
    """The README's loop."""
    torch.manual_seed(0)
    model, losses = Transformer(SIZES), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for batch in loader:
        tokens = batch["tokens"]
        loss, sums, counts = model.loss(tokens[:, :-1], tokens[:, 1:], batch["domain"], len(loader.dataset.names))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loader.observe(sums, counts)
        losses.append(loss.item())
        if loader.step == NUM_STEPS:
            break
    loader.flush()
    assert losses[-1] < losses[0] - 1
    assert loader.policy.step == NUM_STEPS


def hugging_face_losses(corpus, folder, resume: bool) -> list[float]:
    """The losses of NUM_STEPS steps of a Trainer that saves half-way; resume: from that checkpoint on."""
    from transformers import Qwen3Config, Qwen3ForCausalLM, TrainingArguments

    from ado_stream.adapters.hugging_face import AdaptiveTrainer

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=88,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
    )
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=NUM_STEPS, save_steps=HALF, learning_rate=1e-2, logging_steps=1,
        use_cpu=True, report_to=[], remove_unused_columns=False, disable_tqdm=True,
    )  # fmt: skip
    with adaptive_loader(corpus) as loader:
        trainer = AdaptiveTrainer(Qwen3ForCausalLM(config), arguments, loader=loader)
        trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{HALF}") if resume else None)
        loader.flush()
        assert loader.policy.step == NUM_STEPS
        losses = {each["step"]: each["loss"] for each in trainer.state.log_history if "loss" in each}
    return [losses[step] for step in range(1, NUM_STEPS + 1)]


@pytest.mark.slow
def test_hugging_face_trainer_trains_and_resumes(tiny_corpus, tmp_path):
    whole = hugging_face_losses(tiny_corpus, tmp_path, resume=False)
    assert whole[-1] < whole[0] - 1
    assert hugging_face_losses(tiny_corpus, tmp_path, resume=True) == whole


@pytest.fixture
def small_trainer(tiny_corpus, tmp_path):
    """An untrained Trainer on the loader."""
    from transformers import Qwen3Config, Qwen3ForCausalLM, TrainingArguments

    from ado_stream.adapters.hugging_face import AdaptiveTrainer

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=320, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=16,
    )  # fmt: skip
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=3, save_strategy="no", use_cpu=True, report_to=[],
        remove_unused_columns=False, disable_tqdm=True, per_device_eval_batch_size=2,
    )  # fmt: skip
    with adaptive_loader(tiny_corpus) as loader:
        yield AdaptiveTrainer(Qwen3ForCausalLM(config), arguments, loader=loader)


@pytest.mark.parametrize("with_domain", [False, True])
@pytest.mark.parametrize("with_labels", [False, True])
def test_hugging_face_evaluates_with_a_domain_or_labels_or_both(small_trainer, with_domain, with_labels):
    """Oracle: Qwen3's own loss. Half of the targets are masked where labels are given; two batches of equal size.

    Without a domain the loss is Trainer's own, so the padding of an ordinary data set is masked.
    """
    tokens = torch.randint(320, (4, 33), generator=torch.Generator().manual_seed(1))
    labels = tokens.clone()
    labels[:, :16] = -100
    mask = torch.ones_like(tokens)
    mask[:, :8] = 0
    rows = [
        {
            "input_ids": tokens[row],
            **({"domain": torch.tensor(row % 3)} if with_domain else {}),
            **({"labels": labels[row]} if with_labels else {}),
            **({} if with_domain else {"attention_mask": mask[row]}),
        }
        for row in range(4)
    ]
    found = small_trainer.evaluate(rows)
    assert ("eval_loss" in found) == (with_domain or with_labels)
    if "eval_loss" in found:
        with torch.no_grad():
            asked = {"input_ids": tokens, "labels": labels if with_labels else tokens}
            expected = small_trainer.model(**asked, **({} if with_domain else {"attention_mask": mask})).loss
        assert found["eval_loss"] == pytest.approx(expected.item(), rel=rounding(320))  # of the vocabulary
    assert small_trainer._loader.policy.step == 0  # the policy does not see evaluation losses


def test_hugging_face_under_deepspeed_is_refused(loader, small_trainer):
    """Trainer loads DeepSpeed checkpoints by another method, with which the loader would silently restart."""
    from ado_stream.adapters.hugging_face import AdaptiveTrainer

    class UnderDeepSpeed(AdaptiveTrainer):
        def create_accelerator_and_postprocess(self):
            super().create_accelerator_and_postprocess()
            self.is_deepspeed_enabled = True

    with pytest.raises(ConfigError, match="AdaptiveTrainer cannot resume under DeepSpeed; use DDP or FSDP"):
        UnderDeepSpeed(small_trainer.model, small_trainer.args, loader=loader)


def test_hugging_face_returns_outputs_on_request(small_trainer):
    tokens, domain = torch.randint(320, (3, 33)), torch.tensor([0, 2, 2])
    small_trainer.model.eval()
    batch = {"input_ids": tokens, "domain": domain}
    loss, outputs = small_trainer.compute_loss(small_trainer.model, batch, return_outputs=True)
    assert outputs.logits.shape == (3, 32, 320)
    assert loss == small_trainer.compute_loss(small_trainer.model, batch)


def lightning_losses(corpus, folder, resume: bool) -> list[float]:
    """The same with Lightning; resume: the second half's losses only."""
    import lightning

    from ado_stream.adapters.lightning import AdaptiveModule

    losses = []

    class Recorded(AdaptiveModule):
        def training_step(self, batch, batch_index):
            loss = super().training_step(batch, batch_index)
            losses.append(loss.item())
            return loss

    torch.manual_seed(0)
    with adaptive_loader(corpus) as loader:
        module = Recorded(Transformer(SIZES), loader, lambda parameters: torch.optim.AdamW(parameters, lr=1e-2))
        saving = lightning.pytorch.callbacks.ModelCheckpoint(folder, "{step}", every_n_train_steps=HALF, save_top_k=-1)
        trainer = lightning.Trainer(
            max_steps=NUM_STEPS, accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=folder, callbacks=[saving],
        )  # fmt: skip
        trainer.fit(module, ckpt_path=folder / f"step={HALF}.ckpt" if resume else None)
        loader.flush()
        assert loader.policy.step == NUM_STEPS
    return losses


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # Lightning's own
def test_lightning_trains_and_resumes(tiny_corpus, tmp_path):
    whole = lightning_losses(tiny_corpus, tmp_path, resume=False)
    assert len(whole) == NUM_STEPS
    assert whole[-1] < whole[0] - 1
    assert lightning_losses(tiny_corpus, tmp_path, resume=True) == whole[HALF:]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # Lightning's own
def test_lightning_validates(loader, tmp_path):
    import lightning

    from ado_stream.adapters.lightning import AdaptiveModule

    torch.manual_seed(0)
    module = AdaptiveModule(Transformer(SIZES), loader, lambda parameters: torch.optim.AdamW(parameters))
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path,
    )  # fmt: skip
    batches = [{"tokens": torch.randint(320, (rows, 33))} for rows in (2, 4)]
    (found,) = trainer.validate(module, DataLoader(batches, batch_size=None), verbose=False)
    tokens = torch.cat([batch["tokens"] for batch in batches])
    with torch.no_grad():
        expected, _, _ = module.model.loss(tokens[:, :-1], tokens[:, 1:], torch.zeros(6, dtype=torch.int64), 1)
    assert found["val_loss"] == pytest.approx(expected.item(), rel=rounding(320))  # of the vocabulary
    assert loader.policy.step == 0

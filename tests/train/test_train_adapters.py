"""Other people's loops train on an adaptive stream: losses fall, every step is told, a resumed run goes on exactly."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from ado_model import ModelConfig, Transformer
from ado_stream.corpus import open_corpus
from ado_stream.loader import AdaptiveLoader
from ado_stream.policy.registry import make_policy
from ado_stream.stream.dataset import AdaptiveStreamingDataset

NUM_STEPS = 30
HALF = 15
SIZES = ModelConfig(num_layers=1, width=32, num_heads=2, vocab_size=320, context_length=32)


@contextmanager
def adaptive_loader(corpus) -> Iterator[AdaptiveLoader]:
    domains, _, _ = open_corpus(corpus)
    dataset = AdaptiveStreamingDataset(domains, global_batch_size=8, mixture_lag=2)
    prior = dict(zip(dataset.names, dataset.prior_K, strict=True))
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
    """The losses of a Trainer's NUM_STEPS steps that saves half-way, or of its second half, gone on from there."""
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


def test_hugging_face_trainer_trains_and_resumes(tiny_corpus, tmp_path):
    pytest.importorskip("accelerate")
    whole = hugging_face_losses(tiny_corpus, tmp_path, resume=False)
    assert whole[-1] < whole[0] - 1
    assert hugging_face_losses(tiny_corpus, tmp_path, resume=True) == whole


def lightning_losses(corpus, folder, resume: bool) -> list[float]:
    """As above, by Lightning."""
    import lightning

    from ado_stream.adapters.lightning import AdaptiveModule

    losses = []

    class Noted(AdaptiveModule):
        def training_step(self, batch, batch_index):
            loss = super().training_step(batch, batch_index)
            losses.append(loss.item())
            return loss

    torch.manual_seed(0)
    with adaptive_loader(corpus) as loader:
        module = Noted(Transformer(SIZES), loader, lambda parameters: torch.optim.AdamW(parameters, lr=1e-2))
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
    pytest.importorskip("lightning")
    whole = lightning_losses(tiny_corpus, tmp_path, resume=False)
    assert len(whole) == NUM_STEPS
    assert whole[-1] < whole[0] - 1
    assert lightning_losses(tiny_corpus, tmp_path, resume=True) == whole[HALF:]

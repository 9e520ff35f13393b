"""AdaptiveModule in Trainers that were given other data, checkpoints and ways to optimise."""

import lightning
import pytest
import torch
from torch.utils.data import DataLoader

from ado_model import Transformer
from ado_stream.adapters.lightning import AdaptiveModule
from ado_stream.errors import ConfigError, ResumeError
from tests.rounding import rounding
from tests.train.test_train_adapters import SIZES, adaptive_loader, lightning_trainer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # Lightning's own


@pytest.fixture
def module(tiny_corpus):
    torch.manual_seed(0)
    with adaptive_loader(tiny_corpus) as loader:
        yield AdaptiveModule(Transformer(SIZES), loader, lambda parameters: torch.optim.AdamW(parameters, lr=1e-2))


def validation_batches() -> list[dict[str, torch.Tensor]]:
    """Two, of 2 x 2 and 2 x 30 targets."""
    batches = []
    for num_padding in (30, 2):
        tokens = torch.randint(320, (2, 33), generator=torch.Generator().manual_seed(num_padding))
        targets = tokens[:, 1:].clone()
        targets[:, :num_padding] = -100
        batches.append({"tokens": tokens, "targets": targets})
    return batches


def test_the_validation_loss_is_the_mean_over_targets(module, tmp_path):
    """Oracle: the losses of both batches' targets added up. Weighted by rows, padding would count."""
    batches = validation_batches()
    trainer = lightning_trainer(tmp_path)
    (found,) = trainer.validate(module, DataLoader(batches, batch_size=None), verbose=False)
    with torch.no_grad():
        losses = [module.model.loss(*pair(each), torch.tensor([0, 0]), 1)[1:] for each in batches]
    expected = sum(sums.item() for sums, _ in losses) / sum(counts.item() for _, counts in losses)
    assert found["val_loss"] == pytest.approx(expected, rel=rounding(320))


def pair(batch):
    return batch["tokens"][:, :-1], batch["targets"]


def test_several_validation_loaders_are_logged_one_by_one(module, tmp_path):
    loaders = [DataLoader([each], batch_size=None) for each in validation_batches()]
    found = lightning_trainer(tmp_path).validate(module, loaders, verbose=False)
    for each, batch, number in zip(found, validation_batches(), range(2), strict=True):
        with torch.no_grad():
            expected = module.model.loss(*pair(batch), torch.tensor([0, 0]), 1)[0].item()
        assert each[f"val_loss/dataloader_idx_{number}"] == pytest.approx(expected, rel=rounding(320))


def test_training_data_of_others_are_refused(module, tmp_path):
    trainer = lightning_trainer(tmp_path, max_steps=1)
    with pytest.raises(ConfigError, match="AdaptiveModule has its own training data; give fit"):
        trainer.fit(module, train_dataloaders=DataLoader(validation_batches(), batch_size=None))


def test_a_checkpoint_of_another_module_is_refused(module, tmp_path):
    trainer = lightning_trainer(tmp_path, max_steps=1)
    trainer.fit(module)
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    checkpoint = torch.load(tmp_path / "own.ckpt", weights_only=False)
    del checkpoint["adaptive_loader"]
    torch.save(checkpoint, tmp_path / "others.ckpt")
    with pytest.raises(ResumeError, match="has no 'adaptive_loader': it was not saved by an AdaptiveModule"):
        lightning_trainer(tmp_path, max_steps=2).fit(module, ckpt_path=tmp_path / "others.ckpt")


class Manual(AdaptiveModule):
    """Optimises by itself, as Lightning's documentation shows it."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.automatic_optimization = False
        self.losses = []

    def training_step(self, batch, batch_index):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = super().training_step(batch, batch_index)
        self.manual_backward(loss)
        optimizer.step()
        self.losses.append(loss.item())


def test_manual_optimisation_resumes(tiny_corpus, tmp_path):
    def losses(ckpt_path=None):
        torch.manual_seed(0)
        with adaptive_loader(tiny_corpus) as loader:
            module = Manual(Transformer(SIZES), loader, lambda parameters: torch.optim.AdamW(parameters, lr=1e-2))
            lightning_trainer(tmp_path, max_steps=6, callbacks=[SaveAfter(3)]).fit(module, ckpt_path=ckpt_path)
            return module.losses

    class SaveAfter(lightning.Callback):
        def __init__(self, num_steps):
            self.num_steps = num_steps

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_index):
            if batch_index + 1 == self.num_steps:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    whole = losses()
    assert losses(tmp_path / "half.ckpt") == whole[3:]


@pytest.mark.parametrize("num_parts", [1, 2])
def test_a_checkpoint_of_an_epochs_end_resumes_with_the_next_epoch(tiny_corpus, tmp_path, num_parts):
    """Lightning alone would run one more part of the epoch that has ended, and call the run done with the second."""

    class Recorded(AdaptiveModule):
        def training_step(self, batch, batch_index):
            losses.append((batch["step"], super().training_step(batch, batch_index)))
            return losses[-1][1]

    def fit(callbacks=(), ckpt_path=None):
        torch.manual_seed(0)
        with adaptive_loader(tiny_corpus) as loader:
            module = Recorded(Transformer(SIZES), loader, lambda parameters: torch.optim.AdamW(parameters, lr=1e-2))
            lightning_trainer(
                tmp_path, max_steps=9, max_epochs=2, limit_train_batches=3 * num_parts,
                accumulate_grad_batches=num_parts, callbacks=list(callbacks),
            ).fit(module, ckpt_path=ckpt_path)  # fmt: skip

    class SaveAtEnd(lightning.Callback):
        def on_train_epoch_end(self, trainer, module):
            trainer.save_checkpoint(tmp_path / f"epoch{trainer.current_epoch}.ckpt")

    losses = []
    fit([SaveAtEnd()])
    whole, losses = losses, []
    assert [step for step, _ in whole] == [step for step in range(6) for _ in range(num_parts)]
    fit(ckpt_path=tmp_path / "epoch0.ckpt")
    assert losses == whole[3 * num_parts :]


@pytest.mark.parametrize("num_parts", [1, 2])
def test_a_narrow_default_dtype_leaves_the_counts_whole_numbers(tiny_corpus, tmp_path, num_parts):
    """Lightning sets the default to bfloat16, which holds whole numbers up to 256."""
    with adaptive_loader(tiny_corpus) as loader:
        module = AdaptiveModule(Transformer(SIZES), loader, lambda parameters: torch.optim.SGD(parameters, lr=1e-2))
        trainer = lightning_trainer(tmp_path, max_steps=3, precision="bf16-true", accumulate_grad_batches=num_parts)
        trainer.fit(module)
        loader.flush()
        assert loader.policy.step == 3

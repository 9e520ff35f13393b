"""Training loops of other frameworks: losses fall, every step is observed, a resumed run has the same losses."""

import itertools
from collections.abc import Iterator
from contextlib import closing, contextmanager

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ado_model import ModelConfig, Transformer
from ado_stream.adapters.micro_batches import MicroBatches
from ado_stream.corpus import open_corpus
from ado_stream.errors import ConfigError, ResumeError
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


def qwen(**changes):
    """A small transformer of Hugging Face's; the same weights each time."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 88, "num_hidden_layers": 1, "head_dim": 16}
    return Qwen3ForCausalLM(Qwen3Config(**sizes, num_attention_heads=2, num_key_value_heads=2, **changes))


def mixture_of_experts():
    """One whose loss includes that of its router."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=320, hidden_size=32, moe_intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, num_experts=4, num_experts_per_tok=2, output_router_logits=True,
        router_aux_loss_coef=0.5,
    )  # fmt: skip
    return Qwen3MoeForCausalLM(config)


def hugging_face_trainer(loader, folder, model=None, max_steps=NUM_STEPS, trainer_options=None, **arguments):
    from transformers import TrainingArguments

    from ado_stream.adapters.hugging_face import AdaptiveTrainer

    usual = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "logging_steps": 1}
    args = TrainingArguments(output_dir=str(folder), max_steps=max_steps, **usual, **arguments)
    return AdaptiveTrainer(model or qwen(), args, loader=loader, **(trainer_options or {}))


def test_accelerate_leaves_the_loader_as_it_is(loader):
    """It would give each process every n-th batch of a DataLoader; the loader's are this rank's already."""
    from accelerate import Accelerator

    assert Accelerator(cpu=True).prepare(loader) is loader


def test_accelerate_skips_no_batches_of_a_loader_that_knows_its_step(loader):
    """It would copy a DataLoader from its attributes."""
    from accelerate import Accelerator, skip_first_batches

    for skip in (
        skip_first_batches,
        Accelerator(cpu=True).skip_first_batches,
        Accelerator(cpu=True).prepare_data_loader,
    ):
        with pytest.raises(ConfigError, match="accelerate cannot copy the AdaptiveLoader, .*skip_first_batches"):
            skip(loader)
    assert not hasattr(loader, "num_workers")
    with pytest.raises(AttributeError, match="'AdaptiveLoader' object has no attribute 'obsreve'"):
        getattr(loader, "obsreve")  # noqa: B009


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_accelerate_does_not_split_the_rows_of_a_rank_again(tiny_corpus, num_ranks, num_workers):
    """On two ranks it would hand out rank 0's rows to both."""
    from accelerate.data_loader import DataLoaderShard

    domains, _, _ = open_corpus(tiny_corpus)
    with closing(AdaptiveStreamingDataset(domains, global_batch_size=8, rank=0, world_size=num_ranks)) as dataset:
        batches = iter(DataLoaderShard(dataset, batch_size=None, num_workers=num_workers))
        if num_ranks == 1:
            assert next(batches)["tokens"].shape == (8, 33)
        else:
            with pytest.raises(ConfigError, match="accelerate would hand out the rows of one of 2 ranks"):
                next(batches)


@pytest.mark.slow
def test_a_trainer_of_transformers_does_not_split_the_rows_of_a_rank_again(tiny_corpus, tmp_path):
    from transformers import Trainer, TrainingArguments

    args = TrainingArguments(output_dir=str(tmp_path), max_steps=1, use_cpu=True, report_to=[], disable_tqdm=True)
    domains, _, _ = open_corpus(tiny_corpus)
    dataset = AdaptiveStreamingDataset(domains, global_batch_size=8, rank=0, world_size=2)
    with closing(dataset), pytest.raises(ConfigError, match="accelerate would hand out the rows of one of 2 ranks"):
        Trainer(qwen(), args, train_dataset=dataset).train()


def hugging_face_losses(corpus, folder, resume: bool | str, **arguments) -> list[float]:
    """The losses of NUM_STEPS steps of a Trainer that saves half-way; resume: from that checkpoint on."""
    with adaptive_loader(corpus) as loader:
        trainer = hugging_face_trainer(loader, folder, save_steps=HALF, learning_rate=1e-2, **arguments)
        trainer.train(resume_from_checkpoint=resume)
        loader.flush()
        assert loader.policy.step == NUM_STEPS
        losses = {each["step"]: each["loss"] for each in trainer.state.log_history if "loss" in each}
    return [losses[step] for step in range(1, NUM_STEPS + 1)]


@pytest.mark.slow
@pytest.mark.parametrize("num_parts", [1, 4])
def test_hugging_face_trainer_trains_and_resumes(tiny_corpus, tmp_path, num_parts):
    whole = hugging_face_losses(tiny_corpus, tmp_path, resume=False, gradient_accumulation_steps=num_parts)
    assert whole[-1] < whole[0] - 1
    half = str(tmp_path / f"checkpoint-{HALF}")
    assert hugging_face_losses(tiny_corpus, tmp_path, resume=half, gradient_accumulation_steps=num_parts) == whole


def pairs_of(batch, token: int) -> int:
    """How often `token` follows itself."""
    tokens = batch["tokens"]
    return int(((tokens[:, 1:] == token) & (tokens[:, :-1] == token)).sum())


@contextmanager
def padded_loader(corpus) -> Iterator[tuple[AdaptiveLoader, int]]:
    """A loader whose first batch has padding, as of best-fit packing, and that batch's number of targets.

    A token after the same one is padding; here one of text that does so most often.
    """
    with adaptive_loader(corpus) as loader:
        batch = next(iter(loader))
        padding = max(range(256), key=lambda token: pairs_of(batch, token))
    num_padding = pairs_of(batch, padding)
    assert num_padding > 0
    with adaptive_loader(corpus) as loader:
        loader.dataset.padding_token = padding
        yield loader, 8 * 32 - num_padding


def hugging_face_update(loader, folder, num_parts, accepts_count=True, model=None, **options) -> torch.Tensor:
    """What one step of SGD with learning rate 1 changes: minus the gradient."""
    trainer = hugging_face_trainer(
        loader, folder, model, max_steps=1, optim="sgd", learning_rate=1.0, max_grad_norm=0.0, save_strategy="no",
        lr_scheduler_type="constant", gradient_accumulation_steps=num_parts, **options,
    )  # fmt: skip
    before = torch.cat([each.detach().flatten().clone() for each in trainer.model.parameters()])
    trainer.model_accepts_loss_kwargs = accepts_count
    trainer.train()
    return torch.cat([each.detach().flatten() for each in trainer.model.parameters()]) - before


@pytest.mark.parametrize("accepts_count", [True, False])
def test_hugging_face_router_losses_are_averaged_over_parts(loader, tiny_corpus, tmp_path, accepts_count):
    """Oracle: the mean over parts of the model's own loss. Trainer alone would add up the router's."""
    tokens = next(iter(loader))["tokens"]
    model = mixture_of_experts().train()
    sum(model(input_ids=part, labels=part).loss / 4 for part in tokens.chunk(4)).backward()
    gradient = torch.cat([each.grad.flatten() for each in model.parameters()])
    with adaptive_loader(tiny_corpus) as other:
        update = hugging_face_update(other, tmp_path, 4, accepts_count, mixture_of_experts())
    assert (update + gradient).abs().max() < 1e-6 * gradient.abs().max()


@pytest.mark.parametrize(
    ("own_loss", "accepts_count"),
    [
        (False, True),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((False, False), (True, True), (True, False))),
    ],
)
def test_hugging_face_accumulation_equals_one_large_batch(tiny_corpus, tmp_path, own_loss, accepts_count):
    """The gradient, and what the policy observes, of a batch with padding.

    accepts_count: whether the model divides by Trainer's count of targets, or Trainer by the number of parts.
    """

    def summed(outputs, labels, num_items_in_batch):
        logits = outputs.logits[:, :-1].transpose(1, 2)
        return torch.nn.functional.cross_entropy(logits, labels[:, 1:], reduction="sum") / num_items_in_batch

    found = {}
    for num_parts in (1, 2, 8):
        with padded_loader(tiny_corpus) as (loader, num_targets):
            observed = record_observed(loader)
            options = {"compute_loss_func": summed} if own_loss else {}
            update = hugging_face_update(loader, tmp_path, num_parts, accepts_count, trainer_options=options)
            ((sums_K, counts_K),) = observed
            assert counts_K.sum() == num_targets
            found[num_parts] = (update, sums_K)
    gradient, sums_K = found.pop(1)
    for other_gradient, other_sums_K in found.values():
        assert (other_gradient - gradient).abs().max() < 1e-6 * gradient.abs().max()
        torch.testing.assert_close(other_sums_K, sums_K, rtol=1e-6, atol=0)


def record_observed(loader) -> list:
    """What `loader.observe` gets from now on."""
    observe, observed = loader.observe, []

    def record(sums_K, counts_K):
        observed.append((sums_K, counts_K))
        observe(sums_K, counts_K)

    loader.observe = record
    return observed


def test_hugging_face_losses_are_trainers_own(loader, tmp_path):
    """With the router's loss, smoothed labels, a loss function of the user's and the attention mask of samples."""
    tokens, domain = torch.randint(320, (4, 33), generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 1])
    batch = {"input_ids": tokens, "domain": domain}
    experts = hugging_face_trainer(loader, tmp_path, mixture_of_experts().eval())
    plain = torch.nn.functional.cross_entropy(experts.model(tokens).logits[:, :-1].transpose(1, 2), tokens[:, 1:])
    expected = experts.model(input_ids=tokens, labels=tokens).loss
    assert expected > plain + 0.1
    assert experts.compute_loss(experts.model, batch).item() == pytest.approx(expected.item(), rel=rounding(320))

    model = qwen().eval()
    log_probability = model(tokens).logits[:, :-1].log_softmax(-1)
    target = log_probability.gather(-1, tokens[:, 1:, None]).mean()
    smoothed = hugging_face_trainer(loader, tmp_path, model, label_smoothing_factor=0.25)
    expected = -(0.75 * target + 0.25 * log_probability.mean()).item()
    assert smoothed.compute_loss(model, batch).item() == pytest.approx(expected, rel=rounding(320))

    def zero(outputs, labels, num_items_in_batch):
        return 0.0 * outputs.logits.sum()

    own = hugging_face_trainer(loader, tmp_path, model, trainer_options={"compute_loss_func": zero})
    assert own.compute_loss(model, batch).item() == 0.0

    mask = torch.ones_like(tokens)
    mask[:, :8] = 0
    expected = model(input_ids=tokens, labels=tokens, attention_mask=mask).loss.item()
    masked = hugging_face_trainer(loader, tmp_path, model)
    found = masked.compute_loss(model, {**batch, "attention_mask": mask})
    assert found.item() == pytest.approx(expected, rel=rounding(320))
    assert abs(found.item() + target.item()) > 2 * rounding(320) * expected  # the mask changes the loss


def test_hugging_face_observes_each_domains_losses(loader, tmp_path):
    """Oracle: the rows' mean losses, in float64, added by domain."""
    observed = record_observed(loader)
    trainer = hugging_face_trainer(loader, tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.compute_loss(trainer.model.train(), batch)
    ((sums_K, counts_K),) = observed
    logits = trainer.model.double()(batch["input_ids"]).logits[:, :-1]
    loss_B = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["input_ids"][:, 1:], reduction="none").sum(
        1
    )
    expected = torch.zeros(3, dtype=torch.float64).index_add_(0, batch["domain"], loss_B.detach())
    torch.testing.assert_close(sums_K.double(), expected, rtol=rounding(320), atol=0)
    assert counts_K.tolist() == (32 * torch.bincount(batch["domain"], minlength=3)).tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gradient_accumulation_steps": 3}, "gradient_accumulation_steps is 3; it must divide the 8 rows"),
        ({"gradient_accumulation_steps": 2, "label_smoothing_factor": 0.1}, "unset label_smoothing_factor"),
        (
            {"label_smoothing_factor": 0.1, "model": mixture_of_experts},
            "cannot smooth labels of a model with a router's loss",
        ),
        ({"include_tokens_per_second": True}, "unset include_tokens_per_second"),
        ({"auto_find_batch_size": True}, "unset auto_find_batch_size"),
        ({"max_steps": -1, "num_train_epochs": 1}, "needs max_steps"),
        ({"trainer_options": {"train_dataset": [{}]}}, "leave train_dataset out"),
    ],
)
def test_hugging_face_settings_that_cannot_be_honoured_are_refused(loader, tmp_path, arguments, message):
    model = arguments.get("model", qwen)()
    with pytest.raises(ConfigError, match=message):
        hugging_face_trainer(loader, tmp_path, **{**arguments, "model": model})


def test_hugging_face_models_with_too_few_positions_are_refused(loader, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 320, "n_embd": 16, "n_layer": 1, "n_head": 1}
    with pytest.raises(ConfigError, match="samples have 33 tokens, the model 32 positions; .* --seq-len 31 or less"):
        hugging_face_trainer(loader, tmp_path, GPT2LMHeadModel(GPT2Config(**sizes, n_positions=32)))
    hugging_face_trainer(loader, tmp_path, GPT2LMHeadModel(GPT2Config(**sizes, n_positions=33)))


class Killed(Exception):
    """Stands for kill -9: nothing is written after it."""


@pytest.mark.parametrize(
    "at",
    [
        "save_model",
        *(pytest.param(at, marks=pytest.mark.slow) for at in ("_save_optimizer_and_scheduler", "_save_rng_state")),
    ],
)
def test_hugging_face_resumes_from_the_newest_complete_checkpoint(tiny_corpus, tmp_path, monkeypatch, at):
    """The save of step 4 is killed; True resumes at step 2, where Trainer alone would choose the torn folder."""
    from ado_stream.adapters.hugging_face import AdaptiveTrainer

    def trained(folder, **options):
        with adaptive_loader(tiny_corpus) as loader:
            trainer = hugging_face_trainer(loader, folder, max_steps=6, save_steps=2, learning_rate=1e-2)
            trainer.train(**options)
            return [each["loss"] for each in trainer.state.log_history if "loss" in each]

    def killed_at_step_4(trainer, *arguments, **options):
        if trainer.state.global_step == 4:
            raise Killed
        return real(trainer, *arguments, **options)

    whole = trained(tmp_path / "whole")
    real = getattr(AdaptiveTrainer, at)
    with monkeypatch.context() as patch:
        patch.setattr(AdaptiveTrainer, at, killed_at_step_4)
        with pytest.raises(Killed):
            trained(tmp_path / "torn")
    torn = tmp_path / "torn" / "checkpoint-4"
    with pytest.raises(ResumeError, match="checkpoint-4: trainer_state.json is missing: .* the save did not finish"):
        trained(tmp_path / "torn", resume_from_checkpoint=str(torn))
    assert trained(tmp_path / "torn", resume_from_checkpoint=True) == whole
    assert trained(tmp_path / "torn", resume_from_checkpoint=True) == whole  # nothing is left to do
    assert (torn / "trainer_state.json").exists()  # written again


def test_hugging_face_without_a_complete_checkpoint_says_so(loader, tmp_path):
    (tmp_path / "checkpoint-4").mkdir()
    trainer = hugging_face_trainer(loader, tmp_path)
    with pytest.raises(ResumeError, match="no complete checkpoint to resume from; train without"):
        trainer.train(resume_from_checkpoint=True)
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text("{}")  # as of a Trainer without the loader
    with pytest.raises(ResumeError, match="adaptive_loader.json is missing: not saved by AdaptiveTrainer"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    (tmp_path / "checkpoint-4" / "adaptive_loader.json").write_text('{"stream": ')
    with pytest.raises(ResumeError, match="adaptive_loader.json is not JSON"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


@pytest.fixture
def small_trainer(loader, tmp_path):
    """An untrained Trainer on the loader."""
    return hugging_face_trainer(loader, tmp_path, max_steps=3, save_strategy="no", per_device_eval_batch_size=2)


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
    assert outputs.logits.shape == (3, 33, 320)
    assert loss == small_trainer.compute_loss(small_trainer.model, batch)


def lightning_losses(corpus, folder, resume: bool, num_parts: int = 1) -> list[float]:
    """The same with Lightning, a loss for each part of a batch; resume: the second half's losses only."""
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
            enable_model_summary=False, default_root_dir=folder, callbacks=[saving], accumulate_grad_batches=num_parts,
        )  # fmt: skip
        trainer.fit(module, ckpt_path=folder / f"step={HALF}.ckpt" if resume else None)
        loader.flush()
        assert loader.policy.step == NUM_STEPS
    return losses


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # Lightning's own
@pytest.mark.parametrize("num_parts", [1, 2])
def test_lightning_trains_and_resumes(tiny_corpus, tmp_path, num_parts):
    whole = lightning_losses(tiny_corpus, tmp_path, resume=False, num_parts=num_parts)
    assert len(whole) == NUM_STEPS * num_parts
    assert whole[-1] < whole[0] - 1
    assert lightning_losses(tiny_corpus, tmp_path, resume=True, num_parts=num_parts) == whole[HALF * num_parts :]


def lightning_trainer(folder, **options):
    import lightning

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(accelerator="cpu", **quiet, default_root_dir=folder, enable_checkpointing=False, **options)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # Lightning's own
def test_lightning_accumulation_equals_one_large_batch(tiny_corpus, tmp_path):
    """As for Trainer."""
    from ado_stream.adapters.lightning import AdaptiveModule

    found = {}
    for num_parts in (1, 2, 8):
        torch.manual_seed(0)
        with padded_loader(tiny_corpus) as (loader, num_targets):
            observed = record_observed(loader)
            model = Transformer(SIZES)
            before = torch.cat([each.detach().flatten().clone() for each in model.parameters()])
            module = AdaptiveModule(model, loader, lambda parameters: torch.optim.SGD(parameters, lr=1.0))
            lightning_trainer(tmp_path, max_steps=1, accumulate_grad_batches=num_parts).fit(module)
            ((sums_K, counts_K),) = observed
            assert counts_K.sum() == num_targets
            found[num_parts] = torch.cat([each.detach().flatten() for each in model.parameters()]) - before, sums_K
    gradient, sums_K = found.pop(1)
    for other_gradient, other_sums_K in found.values():
        assert (other_gradient - gradient).abs().max() < 1e-6 * gradient.abs().max()
        torch.testing.assert_close(other_sums_K, sums_K, rtol=1e-6, atol=0)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # Lightning's own
def test_lightning_settings_that_cannot_be_honoured_are_refused(loader, tmp_path):
    from lightning.pytorch.callbacks import GradientAccumulationScheduler

    from ado_stream.adapters.lightning import AdaptiveModule

    module = AdaptiveModule(Transformer(SIZES), loader, lambda parameters: torch.optim.SGD(parameters, lr=1.0))
    for options, message in (
        ({"max_epochs": 1}, "needs max_steps"),
        ({"max_steps": 1, "accumulate_grad_batches": 3}, "accumulate_grad_batches is 3; it must divide the 8 rows"),
        ({"max_steps": 2, "accumulate_grad_batches": 4, "limit_train_batches": 6}, "=4 as limit_train_batches, not 6"),
        ({"max_steps": 2, "accumulate_grad_batches": 4, "limit_train_batches": 0.7}, "limit_train_batches, not 0.7"),
        ({"max_steps": 2, "overfit_batches": 1}, "unset overfit_batches"),
        (
            {"max_steps": 1, "callbacks": [GradientAccumulationScheduler({0: 2})]},
            "remove GradientAccumulationScheduler",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            lightning_trainer(tmp_path, **options).fit(module)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # Lightning's own
@pytest.mark.parametrize(("saved_after", "num_parts"), [(3, 2), (4, 4)])
def test_lightning_refuses_a_state_from_within_a_step(tiny_corpus, tmp_path, saved_after, num_parts):
    """Its batches would not begin where Lightning begins to accumulate."""
    import lightning

    from ado_stream.adapters.lightning import AdaptiveModule

    class Save(lightning.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_index):
            if batch_index + 1 == saved_after:
                trainer.save_checkpoint(tmp_path / "saved.ckpt")

    def fit(num_parts, callbacks=(), ckpt_path=None):
        with adaptive_loader(tiny_corpus) as loader:
            module = AdaptiveModule(Transformer(SIZES), loader, lambda parameters: torch.optim.SGD(parameters, lr=1.0))
            trainer = lightning_trainer(
                tmp_path, max_steps=3, accumulate_grad_batches=num_parts, callbacks=[*callbacks]
            )
            trainer.fit(module, ckpt_path=ckpt_path)

    fit(2, callbacks=[Save()])
    with pytest.raises(ResumeError, match=f"in the middle of a step, or with another .* than {num_parts}"):
        fit(num_parts, ckpt_path=tmp_path / "saved.ckpt")


def test_losses_of_a_step_that_was_interrupted_are_no_other_steps(loader):
    """The policy gets each step's losses with that step's counts, and none of the one left after its first part."""
    updates = []
    update = loader.policy.update
    loader.policy.update = lambda mean_K, count_K: updates.append((mean_K, count_K)) or update(mean_K, count_K)
    parts = MicroBatches(loader, 2, "parts")
    zeros = torch.zeros(3)
    next(iter(parts))
    parts.observe(zeros, zeros)
    assert [part["step"] for part in itertools.islice(parts, 2)] == [1, 1]
    for _ in range(2):
        parts.observe(zeros + 1.0, zeros + 2.0)
    loader.flush()
    (lost_K, _), (mean_K, count_K) = updates
    assert np.isnan(lost_K).all()
    assert mean_K.tolist() == [0.5] * 3
    assert count_K.tolist() == loader.dataset.sample_counts(1).tolist()


def test_positions_that_an_adapter_would_drop_are_refused(tiny_corpus):
    dataset = AdaptiveStreamingDataset(open_corpus(tiny_corpus), global_batch_size=8, positions=True)
    with AdaptiveLoader(dataset, "ado") as loader, pytest.raises(ConfigError, match="positions=True"):
        next(iter(MicroBatches(loader, 1, "parts")))


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

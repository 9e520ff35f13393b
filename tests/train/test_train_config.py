"""A config file becomes a checked object, every mistake in it is named by its key, and no option is left out."""

import dataclasses
import inspect
from pathlib import Path

import pytest

from ado_stream.errors import ConfigError, NotFound
from ado_stream.loader import AdaptiveLoader
from ado_stream.storage.retry import RetryPolicy
from ado_stream.stream.dataset import AdaptiveStreamingDataset
from ado_stream.train.run_config import DataSection, RetrySection, TrainConfig, load_config, save_config

LEAST = {"corpus": "c", "run_dir": "r"}


def test_a_file_and_overrides(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text("corpus: /c\nrun_dir: /r\ntrain: {learning_rate: 3e-4, steps: 10}\npolicy: {prior: {code: 2.0}}\n")
    config = load_config(path, ["train.steps=20", "data.global_batch_size=8", "policy.options.interval=5"])
    assert isinstance(config, TrainConfig)
    assert (config.train.steps, config.train.learning_rate, config.data.global_batch_size) == (20, 3e-4, 8)
    assert config.policy.options == {"interval": 5}
    assert config.policy.prior == {"code": 2.0}


def test_domains_of_the_prior_may_be_called_by_numbers(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text("corpus: /c\nrun_dir: /r\npolicy: {prior: {2023: 2, web: 1}}\n")
    assert load_config(path).policy.prior == {"2023": 2.0, "web": 1.0}
    assert load_config(path, ["policy.prior.2023=5"]).policy.prior == {"2023": 5.0, "web": 1.0}
    assert load_config(LEAST, ["policy.prior={2023: 3}"]).policy.prior == {"2023": 3.0}


def test_a_saved_config_reads_back_equal(tmp_path: Path):
    overrides = ["train.betas=[0.8,0.9]", "train.grad_clip=null", "policy.guards=[{name: floor, value: 0.01}]"]
    config = load_config(LEAST, overrides)
    (tmp_path / "another").write_text("not ours")
    (tmp_path / "config.yaml").symlink_to(tmp_path / "another")
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    assert (tmp_path / "another").read_text() == "not ours"


@pytest.mark.parametrize("corpus", ["text:data", {"text": ["data/a.jsonl"]}])
def test_text_in_place_of_a_corpus_is_refused_with_the_way_to_one(corpus):
    with pytest.raises(ConfigError, match=r"need the sizes of all domains.\n  Run `ado-stream prepare` first"):
        load_config({**LEAST, "corpus": corpus})
    assert load_config({**LEAST, "corpus": "texts"}).corpus == "texts"


def test_null_takes_the_limit_off_the_gradient():
    assert load_config(LEAST).train.grad_clip == 1.0
    assert load_config(LEAST, ["train.grad_clip=null"]).train.grad_clip is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.leraning_rate=1", "unknown 'train.leraning_rate' (did you mean 'train.learning_rate'?)"),
        ("trian.steps=1", "unknown 'trian' (did you mean 'train'?)"),
        ("model.zzz=1", "unknown 'model.zzz'; known here: preset, context_length, vocab_size, attention."),
        ("train.steps=many", "'train.steps': Value 'many' of type 'str' could not be converted to Integer"),
        ("train=3", "'train' is a section with the keys steps, learning_rate"),
        ("train.steps=0", "'train.steps' is 0; allowed: 1 or more, 100000000 at most."),
        ("train.steps=1000000000", "'train.steps' is 1000000000; allowed: 1 or more, 100000000 at most."),
        ("train.strategy=zero", "'train.strategy' is 'zero'; allowed: one of ddp, fsdp."),
        ("train.betas=[0.9]", "'train.betas' is [0.9]; allowed: two numbers from 0 to below 1."),
        ("train.betas=0.9", "'train.betas' is 0.9; give a list: [VALUE, ...]."),
        ("policy.prior=[1]", "'policy.prior' is [1]; give a mapping: {KEY: VALUE, ...}."),
        ("policy.guards={name: floor}", "'policy.guards' is {'name': 'floor'}; give a list: [VALUE, ...]."),
        ("train.learning_rate=0", "'train.learning_rate' is 0.0; allowed: a number above 0, or null for 0.46 / width."),
        ("train.learning_rate=.nan", "'train.learning_rate' is nan; allowed: a number above 0"),
        ("train.grad_clip=0", "'train.grad_clip' is 0.0; allowed: a number above 0, or null for no limit."),
        ("train.grad_clip=-1", "'train.grad_clip' is -1.0; allowed: a number above 0"),
        ("train.collective_timeout_s=0", "'train.collective_timeout_s' is 0.0; allowed: a number above 0."),
        ("train.weight_decay=-0.1", "'train.weight_decay' is -0.1; allowed: 0 or more."),
        ("train.min_learning_rate_frac=1.1", "'train.min_learning_rate_frac' is 1.1; allowed: a number from 0 to 1."),
        ("data.sampling=random", "'data.sampling' is 'random'; allowed: one of systematic, multinomial."),
        ("data.predownload=0", "'data.predownload' is 0; allowed: 1 or more."),
        ("data.retry.attempts=0", "'data.retry.attempts' is 0; allowed: 1 or more."),
        ("data.retry.atempts=1", "unknown 'data.retry.atempts' (did you mean 'data.retry.attempts'?)"),
        ("data.retry=3", "'data.retry' is a section with the keys attempts, total_deadline_s"),
        ("train.betas=[0.9, {}]", "'train.betas' {}: expected a number"),
        ("data.fim_tokens={}", "'data.fim_tokens' is {}; give a list"),
        ("policy.guards=[floor]", "'policy.guards[0]' is 'floor'; give a mapping"),
        (f"train.steps=1{'0' * 400}", "'train.steps' is a number of 401 digits; allowed: less than 2"),
        (f"policy.prior={{web: 1{'0' * 400}}}", "'policy.prior.web' is a number of 401 digits"),
        ("train.warmup_steps=1000", "'train.warmup_steps' is 1000; it must be below 'train.steps', 1000."),
        ("train.steps", "override 'train.steps' is not KEY=VALUE; for example train.steps=300."),
    ],
)
def test_mistakes_are_named(override: str, message: str):
    with pytest.raises(ConfigError) as caught:
        load_config(LEAST, [override])
    assert message in str(caught.value)


def test_corpus_and_run_dir_have_no_default():
    with pytest.raises(ConfigError, match="'corpus' is not set; give it in the file or as corpus=PATH"):
        load_config({"run_dir": "r"})


def test_a_missing_file_a_folder_and_broken_yaml(tmp_path: Path):
    with pytest.raises(NotFound, match="no such config file"):
        load_config(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="not a config file: Is a directory"):
        load_config(tmp_path)
    (tmp_path / "number.yaml").write_text("3\n")
    with pytest.raises(ConfigError, match="not a config file: Invalid loaded object type: int"):
        load_config(tmp_path / "number.yaml")
    (tmp_path / "broken.yaml").write_text("train: [")
    with pytest.raises(ConfigError, match="not YAML"):
        load_config(tmp_path / "broken.yaml")


def options(callable_or_dataclass) -> dict[str, object]:
    """{parameter: default} of a class; of a dataclass, its fields and defaults."""
    parameters = inspect.signature(callable_or_dataclass).parameters.values()
    return {each.name: each.default for each in parameters}


def test_the_config_has_every_option_of_data_set_and_loader():
    """Except those that other keys or the run decide; a new option must be added to the config or to this list."""
    elsewhere = {
        "domains": "corpus",
        "seq_len": "the corpus",
        "batch_seq_len": "data.seq_len",
        "seed": "seed",
        "vocab_size": "the corpus's tokenizer",
        "positions": "model.attention",
        "end_token": "the corpus's tokenizer",
        "rank": "torchrun",
        "world_size": "torchrun",
        "dataset": "all of data",
        "policy": "policy",
        "pin_memory": "train.device",
        "device": "train.device",
        "group": "every rank reads",
    }
    takes = {*options(AdaptiveStreamingDataset), *options(AdaptiveLoader)}
    assert elsewhere.keys() <= takes
    config = {each.name for each in dataclasses.fields(DataSection)}
    assert takes - elsewhere.keys() == config - {"cache_dir", "fim", "seq_len"}  # of the corpus, its domains, batches


def test_download_retries_have_the_fields_and_defaults_of_retry_policy():
    expected = {name: value for name, value in options(RetryPolicy).items() if name not in ("random", "clock", "stop")}
    assert options(RetrySection) == expected

"""A user's script that a type checker reads and nobody runs: every public name, with the type that it must have."""

from collections.abc import Iterable, Mapping
from typing import Any, assert_type

import torch
from numpy import array, dtype, float64, ndarray
from torch import Tensor

import ado_stream as ado
from ado_kernels import domain_loss, linear_cross_entropy, rms_norm, rms_norm_rope, scaling_law_fit, swiglu
from ado_model import PRESETS, ModelConfig, Transformer

Array = ndarray[Any, Any]

# fit
options = ado.FitConfig(smooth_window=0)
counts, losses = array([1.0, 2.0]), array([[3.0, 2.9]])
fit = ado.fit_scaling_laws(counts, losses, config=options, backend="auto")
assert_type(fit, ado.ScalingLawFit)
parameters: list[Array] = [fit.alpha, fit.log_beta, fit.log_eps, fit.objective, fit.valid, fit.at_bound]
forecast: Array = fit.predict(1e6) - fit.slope(1e6)
by_hand = ado.ScalingLawFit(counts, counts, counts)

# policies
config = ado.AdoConfig.reference(start_step=1000, ignore_steps=1000, interval=1000)
assert_type(config, ado.AdoConfig)
policy = ado.AdoPolicy({"a": 1.0, "b": 2.0}, config=ado.AdoConfig(), fitter=None)
assert_type(policy.update([2.0, 3.0], [4, 4]), ndarray[Any, dtype[float64]])
assert_type(policy.mixture, ndarray[Any, dtype[float64]])
assert_type(policy.step, int)
last_fit: ado.ScalingLawFit | None = policy.fit
state: dict[str, Any] = policy.state_dict()
policy.load_state_dict(state)
other = ado.make_policy("unimax", [1.0, 2.0], total_steps=20)
guarded = ado.RepetitionGuard(
    ado.Freeze(ado.Pin(ado.Ceiling(ado.Floor(other, 0.01), 0.5), {"a": 0.1})), [10.0, 20.0], total_samples=100
)
assert_type(guarded.update([2.0, 3.0], [4, 4]), ndarray[Any, dtype[float64]])

# stream
corpus = ado.open_corpus("corpus")
assert_type(corpus, ado.Corpus)
domain = ado.Domain(name="code", remote="s3://bucket/code", local="/cache/code")
assert_type(domain.name, str)
assert_type(domain.remote, str | None)
dataset = ado.AdaptiveStreamingDataset([domain], global_batch_size=256, seed=17, canonical_nodes=1, mixture_lag=8)
assert_type(dataset.names, list[str])
dataset.publish(0, counts)
ids: Array = dataset.sample_ids(0)
bounds: Tensor = ado.cumulative_lengths(torch.zeros(2, 4, dtype=torch.int64))
with ado.AdaptiveLoader(dataset, policy=policy, prefetch=4, io_threads=4, pin_memory=False) as loader:
    assert_type(loader, ado.AdaptiveLoader)
    batches: Iterable[Mapping[str, object]] = loader
    loader.observe(torch.ones(2), torch.ones(2))
    loader.load_state_dict(loader.state_dict())
    mixture: Array = loader.mixture

# kernels
x = torch.ones(4, 8)
ids_N = torch.zeros(4, dtype=torch.int64)
norm: Tensor | tuple[Tensor, Tensor] = rms_norm(x)
gated: Tensor = swiglu(x, x)
loss_and_sums: tuple[Tensor, Tensor, Tensor] = linear_cross_entropy(x, x, ids_N, ids_N, 2)
sums_and_counts: tuple[Tensor, Tensor] = domain_loss(x, ids_N, 2)

# model
assert_type(PRESETS, dict[str, ModelConfig])
model = Transformer(PRESETS["nano"])
assert_type(model.loss(ids_N, ids_N, ids_N, 2), tuple[Tensor, Tensor, Tensor])
ado.export_hugging_face(model, "exported", tokenizer=None)

# errors
try:
    raise ado.ShardCorrupt("x")
except ado.DataError as error:
    assert_type(error, ado.DataError)
caught: list[type[ado.AdoStreamError]] = [
    ado.AccessDenied,
    ado.CacheFull,
    ado.CheckpointError,
    ado.ConfigError,
    ado.IndexInvalid,
    ado.NotFound,
    ado.PolicyError,
    ado.ResumeError,
    ado.StorageError,
    ado.Throttled,
]
assert_type(ado.__version__, str)
used = (rms_norm_rope, scaling_law_fit, by_hand)

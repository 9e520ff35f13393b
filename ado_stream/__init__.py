"""ado-stream: pretraining data from many domains, in proportions that follow the model's own learning.

Public names are loaded on first use, so that `import ado_stream` and `ado-stream --help` cost no import of torch.

Arrays carry their dimensions as a suffix throughout (`loss_K`, `tokens_BT`):
    B batch rows   T tokens   D width   H heads   V vocabulary   K domains   M history points   G grid starts
    C lanes        N rows of a flattened batch    P law parameters
Scalars carry units (`_s`, `_bytes`, `_tokens`, `_steps`, `_frac`); counts are `num_*`.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the names of _HOME, for type checkers
    from ado_stream.corpus import Corpus, open_corpus
    from ado_stream.errors import (
        AccessDenied,
        AdoStreamError,
        CacheFull,
        CheckpointError,
        ConfigError,
        DataError,
        IndexInvalid,
        NotFound,
        PolicyError,
        ResumeError,
        ShardCorrupt,
        StorageError,
        Throttled,
    )
    from ado_stream.evaluate.model_export import export_hugging_face
    from ado_stream.loader import AdaptiveLoader
    from ado_stream.policy.ado_config import AdoConfig
    from ado_stream.policy.ado_policy import AdoPolicy
    from ado_stream.policy.guards import Ceiling, Floor, Freeze, Pin, RepetitionGuard
    from ado_stream.policy.policy_registry import make_policy
    from ado_stream.policy.scaling_laws import FitConfig, ScalingLawFit, fit_scaling_laws
    from ado_stream.stream.dataset import AdaptiveStreamingDataset
    from ado_stream.stream.document_positions import cumulative_lengths
    from ado_stream.stream.domain import Domain

__version__ = "0.1.0"

_NAMES_BY_MODULE = {
    "corpus": "Corpus open_corpus",
    "errors": "AccessDenied AdoStreamError CacheFull CheckpointError ConfigError DataError IndexInvalid NotFound "
    "PolicyError ResumeError ShardCorrupt StorageError Throttled",
    "evaluate.model_export": "export_hugging_face",
    "loader": "AdaptiveLoader",
    "policy.ado_config": "AdoConfig",
    "policy.ado_policy": "AdoPolicy",
    "policy.guards": "Ceiling Floor Freeze Pin RepetitionGuard",
    "policy.policy_registry": "make_policy",
    "policy.scaling_laws": "FitConfig ScalingLawFit fit_scaling_laws",
    "stream.dataset": "AdaptiveStreamingDataset",
    "stream.document_positions": "cumulative_lengths",
    "stream.domain": "Domain",
}
_HOME = {name: f"ado_stream.{module}" for module, names in _NAMES_BY_MODULE.items() for name in names.split()}

__all__ = [
    "AccessDenied",
    "AdaptiveLoader",
    "AdaptiveStreamingDataset",
    "AdoConfig",
    "AdoPolicy",
    "AdoStreamError",
    "CacheFull",
    "Ceiling",
    "CheckpointError",
    "ConfigError",
    "Corpus",
    "DataError",
    "Domain",
    "FitConfig",
    "Floor",
    "Freeze",
    "IndexInvalid",
    "NotFound",
    "Pin",
    "PolicyError",
    "RepetitionGuard",
    "ResumeError",
    "ScalingLawFit",
    "ShardCorrupt",
    "StorageError",
    "Throttled",
    "__version__",
    "cumulative_lengths",
    "export_hugging_face",
    "fit_scaling_laws",
    "make_policy",
    "open_corpus",
]

if not TYPE_CHECKING:  # to a type checker, a name that is not there is an error

    def __getattr__(name: str) -> object:
        if name not in _HOME:
            raise AttributeError(f"module 'ado_stream' has no attribute {name!r}")
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)

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
    from ado_stream.evaluate.export import export_hugging_face
    from ado_stream.loader import AdaptiveLoader
    from ado_stream.policy.ado_config import AdoConfig
    from ado_stream.policy.ado_policy import AdoPolicy
    from ado_stream.policy.guards import Ceiling, Floor, Freeze, Pin, RepetitionGuard
    from ado_stream.policy.policy_registry import make_policy
    from ado_stream.policy.scaling_laws import FitConfig, ScalingLawFit, fit_scaling_laws
    from ado_stream.stream.dataset import AdaptiveStreamingDataset
    from ado_stream.stream.domain import Domain

__version__ = "0.1.0"

_HOME = {
    # fit
    "fit_scaling_laws": "ado_stream.policy.scaling_laws",
    "FitConfig": "ado_stream.policy.scaling_laws",
    "ScalingLawFit": "ado_stream.policy.scaling_laws",
    # policy
    "AdoPolicy": "ado_stream.policy.ado_policy",
    "AdoConfig": "ado_stream.policy.ado_config",
    "make_policy": "ado_stream.policy.policy_registry",
    "Floor": "ado_stream.policy.guards",
    "Ceiling": "ado_stream.policy.guards",
    "Pin": "ado_stream.policy.guards",
    "Freeze": "ado_stream.policy.guards",
    "RepetitionGuard": "ado_stream.policy.guards",
    # stream
    "Domain": "ado_stream.stream.domain",
    "AdaptiveStreamingDataset": "ado_stream.stream.dataset",
    "AdaptiveLoader": "ado_stream.loader",
    "open_corpus": "ado_stream.corpus",
    "Corpus": "ado_stream.corpus",
    # model
    "export_hugging_face": "ado_stream.evaluate.export",
    # errors
    **dict.fromkeys(
        (
            "AdoStreamError",
            "ConfigError",
            "DataError",
            "ShardCorrupt",
            "IndexInvalid",
            "StorageError",
            "NotFound",
            "AccessDenied",
            "Throttled",
            "CacheFull",
            "ResumeError",
            "PolicyError",
            "CheckpointError",
        ),
        "ado_stream.errors",
    ),
}

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

"""ado-stream: pretraining data from many domains, in proportions that follow the model's own learning.

Public names are loaded on first use, so that `import ado_stream` and `ado-stream --help` cost no import of torch.

Arrays carry their dimensions as a suffix throughout (`loss_K`, `tokens_BT`):
    B batch rows   T tokens   D width   H heads   V vocabulary   K domains   M history points   G grid starts
    C lanes        N rows of a flattened batch    P law parameters
Scalars carry units (`_s`, `_bytes`, `_tokens`, `_steps`, `_frac`); counts are `num_*`.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the names of _HOME, for type checkers; `as`: they are public here
    from ado_stream.corpus import Corpus as Corpus
    from ado_stream.corpus import open_corpus as open_corpus
    from ado_stream.errors import AccessDenied as AccessDenied
    from ado_stream.errors import AdoStreamError as AdoStreamError
    from ado_stream.errors import CacheFull as CacheFull
    from ado_stream.errors import CheckpointError as CheckpointError
    from ado_stream.errors import ConfigError as ConfigError
    from ado_stream.errors import DataError as DataError
    from ado_stream.errors import IndexInvalid as IndexInvalid
    from ado_stream.errors import NotFound as NotFound
    from ado_stream.errors import PolicyError as PolicyError
    from ado_stream.errors import ResumeError as ResumeError
    from ado_stream.errors import ShardCorrupt as ShardCorrupt
    from ado_stream.errors import StorageError as StorageError
    from ado_stream.errors import Throttled as Throttled
    from ado_stream.evaluate.model_export import export_hugging_face as export_hugging_face
    from ado_stream.loader import AdaptiveLoader as AdaptiveLoader
    from ado_stream.policy.ado_config import AdoConfig as AdoConfig
    from ado_stream.policy.ado_policy import AdoPolicy as AdoPolicy
    from ado_stream.policy.guards import Ceiling as Ceiling
    from ado_stream.policy.guards import Floor as Floor
    from ado_stream.policy.guards import Freeze as Freeze
    from ado_stream.policy.guards import Pin as Pin
    from ado_stream.policy.guards import RepetitionGuard as RepetitionGuard
    from ado_stream.policy.policy_registry import make_policy as make_policy
    from ado_stream.policy.scaling_laws import FitConfig as FitConfig
    from ado_stream.policy.scaling_laws import ScalingLawFit as ScalingLawFit
    from ado_stream.policy.scaling_laws import fit_scaling_laws as fit_scaling_laws
    from ado_stream.stream.dataset import AdaptiveStreamingDataset as AdaptiveStreamingDataset
    from ado_stream.stream.document_positions import cumulative_lengths as cumulative_lengths
    from ado_stream.stream.domain import Domain as Domain

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

if not TYPE_CHECKING:  # to a type checker, a name that is not there is an error
    __all__ = sorted([*_HOME, "__version__"])

    def __getattr__(name: str) -> object:
        if name not in _HOME:
            raise AttributeError(f"module 'ado_stream' has no attribute {name!r}")
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return __all__

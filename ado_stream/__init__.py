"""ado-stream: pretraining data from many domains, in proportions that follow the model's own learning.

Public names are loaded on first use, so that `import ado_stream` and `ado-stream --help` cost no import of torch.

Arrays carry their dimensions as a suffix throughout (`loss_K`, `tokens_BT`):
    B batch rows   T tokens   D width   H heads   V vocabulary   K domains   M history points   G grid starts
    C lanes        N rows of a flattened batch    P law parameters
Scalars carry units (`_s`, `_bytes`, `_tokens`, `_steps`, `_frac`); counts are `num_*`.
"""

import importlib

__version__ = "0.1.0"

_HOME = {
    # fit
    "fit_scaling_laws": "ado_stream.policy.scaling_laws",
    "FitConfig": "ado_stream.policy.scaling_laws",
    "ScalingLawFit": "ado_stream.policy.scaling_laws",
    # policy
    "AdoPolicy": "ado_stream.policy.ado_policy",
    "AdoConfig": "ado_stream.policy.ado_policy",
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

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'ado_stream' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

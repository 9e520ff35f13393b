"""FillInMiddle: how much fill-in-the-middle a domain has; what it does: fill_in_middle_rows.py. Imports no numba."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from ado_stream.errors import ConfigError
from ado_stream.option_checks import number, refuse_unknown
from ado_stream.value_types import JsonMapping


@dataclass(frozen=True)
class FillInMiddle:
    """Of a domain. rate: share of its documents, 0 to 1. spm_rate: share of these that are SPM; the others are PSM."""

    rate: float
    spm_rate: float = 0.5


def as_fill_in_middle(name: str, given: object) -> FillInMiddle | None:
    """`given` (None, a rate, {"rate", "spm_rate"}, FillInMiddle) checked; None for a rate of 0. Raises ConfigError."""
    if given is None:
        return None
    given = asdict(given) if isinstance(given, FillInMiddle) else given
    options: JsonMapping = given if isinstance(given, Mapping) else {"rate": given}
    refuse_unknown(name, options, ("rate", "spm_rate"))
    if "rate" not in options:
        raise ConfigError(f"{name} has no rate, the share of documents: a number from 0 to 1.")
    rates = {key: number(f"{name}.{key}", value, 0.0, 1.0) for key, value in options.items()}
    return FillInMiddle(**rates) if rates["rate"] else None

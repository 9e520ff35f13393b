"""Fill-in-the-middle: a share of a domain's documents, reordered so that a model learns to complete their middle.

    document                  p m s END
    PSM                       PREFIX p SUFFIX s MIDDLE m END
    SPM                       PREFIX SUFFIX s MIDDLE p m END

Bavarian et al. 2022, arXiv 2207.14255: sections 3 and 4.2 (within a sample, on each document), SPM as its appendix D
joins it with PSM. p, m and s are cut at two uniform places between tokens: the loader has tokens, and cutting between
characters would need the tokenizer in every step and change the length.

Invariants: what happens to a sample follows from (seed, domain's name, the sample's number) alone, in every epoch, on
every rank and after any resume. A sample keeps its T + 1 tokens: the three marks of each document that is chosen push
as many tokens out at the sample's end, which are lost; where its last document is chosen, it is shortened before it is
reordered, so that all three parts are of what is left.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from ado_stream.errors import ConfigError
from ado_stream.option_checks import whole
from ado_stream.stream import numba_order
from ado_stream.stream.fill_in_middle import FillInMiddle, as_fill_in_middle
from ado_stream.stream.sample_order import hash_key
from ado_stream.value_types import Ints, JsonObject


class FillInMiddleRows:
    """What is done to the rows of a batch, by domain, at least one of which has fill-in-the-middle.

    marks: ids of prefix, suffix, middle.
    """

    def __init__(self, fims: Mapping[str, FillInMiddle | None], seed: int, marks: Sequence[int], end_token: int):
        self._fims, self.marks = fims, tuple(marks)
        self._rate_K = np.array([fim.rate if fim else 0.0 for fim in fims.values()])
        self._spm_rate_K = np.array([fim.spm_rate if fim else 0.0 for fim in fims.values()])
        self._key_K = np.array([hash_key("fill in the middle", seed, name) for name in fims], np.uint64)
        self._special = np.array([*marks, end_token], np.int64)

    def apply(self, tokens_NT: Ints, domain_N: Ints, id_N: Ints) -> None:
        """Changes rows in place, samples `id_N` of the domains `domain_N`."""
        rates_K = self._rate_K, self._spm_rate_K
        numba_order.fill_in_middle(tokens_NT, domain_N, id_N, self._key_K, *rates_K, self._special)

    def state(self) -> dict[str, JsonObject]:
        """{domain: what its samples depend on}."""
        return {name: {**asdict(fim), "marks": list(self.marks)} for name, fim in self._fims.items() if fim}


def make_fill_in_middle(
    given: Mapping[str, object], seed: int, marks: Sequence[int] | None, end_token: int | None
) -> FillInMiddleRows | None:
    """None where no domain has fill-in-the-middle. given: by domain, as a Domain takes it.

    Raises ConfigError where its tokens are missing or not distinct.
    """
    fims = {name: as_fill_in_middle(f"domain '{name}': fim", each) for name, each in given.items()}
    name = next((name for name, fim in fims.items() if fim), None)
    if name is None:
        return None
    if marks is None:
        raise ConfigError(
            f"domain '{name}': fill-in-the-middle needs three marks, and the tokenizer has none by a known name.\n"
            "  Give their ids, fim_tokens=[PREFIX, SUFFIX, MIDDLE]: unused ones, such as those between the tokenizer's "
            "vocabulary and the model's."
        )
    if end_token is None:
        raise ConfigError(f"domain '{name}': fill-in-the-middle needs end_token=, the token that ends a document.")
    checked = [whole("fim_tokens", each) for each in marks]
    if len({*checked, end_token}) != len(checked) + 1 or len(checked) != 3:
        raise ConfigError(
            f"fim_tokens is {checked}; expected ids of prefix, suffix and middle that differ from each other and from "
            f"the end token, {end_token}."
        )
    return FillInMiddleRows(fims, seed, checked, end_token)

"""The corpus that the stream's tests read."""

import pytest

from tests.stream.helpers import SAMPLES, write_domain


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Five domains of 700, 64, 300, 5 and 1 samples, raw and zstd; a list of Domains."""
    import ado_stream as ado

    root = tmp_path_factory.mktemp("corpus")
    for number, samples in enumerate(SAMPLES):
        write_domain(root / f"d{number}", number, samples, compression="zstd" if number % 2 else None)
    return [ado.Domain(f"d{number}", local=str(root / f"d{number}")) for number in range(len(SAMPLES))]

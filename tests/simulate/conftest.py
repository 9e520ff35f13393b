"""Fixtures of the tests that simulate and replay policies."""

from tests.policy.helpers import loss_stream, make_ado, quick_fit  # noqa: F401 - fixtures

"""Fixtures of the policies' tests."""

from tests.policy.helpers import loss_stream, make_ado, quick_fit  # noqa: F401 - fixtures

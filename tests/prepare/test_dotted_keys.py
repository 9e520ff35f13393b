"""Dotted keys against every path of a record, joined."""

from hypothesis import given
from hypothesis import strategies as st

from ado_stream.prepare.dotted_keys import MISSING, lookup, names_in, splits

NAMES = st.sampled_from(["a", "b", "a.b", "b.a", "", ".", "a."])
RECORDS = st.recursive(st.integers(), lambda inner: st.dictionaries(NAMES, inner, max_size=4), max_leaves=12)


def _paths(record, names=()):
    if isinstance(record, dict):
        for name, value in record.items():
            yield (*names, name), value
            yield from _paths(value, (*names, name))


@given(RECORDS, st.text("ab.", min_size=1, max_size=6))
def test_the_value_is_that_of_the_path_with_the_longest_names_first(record, key):
    paths = {names: value for names, value in _paths(record) if ".".join(names) == key}
    longest = max(paths, key=lambda names: [len(name) for name in names], default=None)
    assert lookup(record, key) is (MISSING if longest is None else paths[longest])
    assert all(names_in(key).issuperset(names) for names in paths)


def test_a_key_that_ends_with_a_dot_is_another():
    assert lookup({"text": "a"}, "text.") is MISSING
    assert list(splits("a.b.")) == [("a.b.", None), ("a.b", ""), ("a", "b.")]

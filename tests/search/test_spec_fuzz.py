"""Specs of any values are read, or refused in one line, at once."""

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small import small_spec

from optuna_robustloss.search.spec import StudySpec

PLAIN = small_spec().model_dump(mode="json", exclude_defaults=True)
NUMBERS = st.one_of(
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from([0, 1, -1, 10**9, 10**30, 1e-320, 1e39, 1e308]),
)
TEXTS = st.text(max_size=5) | st.sampled_from(["digits", "mlp2", "symmetric:0.4", "a" * 10_000])
VALUES = st.recursive(
    st.none() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=6,
)
KEYS = st.sampled_from([*StudySpec.model_fields, "rungs", "methods", "other"])


def check(changes):
    with warnings.catch_warnings(action="ignore"):
        try:
            spec = StudySpec.from_values(PLAIN | changes, "study.yaml")
        except ValueError as error:
            text = str(error)
        else:
            text = "study.yaml: "
            assert 4 <= spec.popsize <= 10_000
            assert len(set(spec.tasks)) == len(spec.tasks)
            assert spec.space.at(spec.space.start_point).build(10)
            assert StudySpec.from_values(spec.model_dump(mode="json"), "again").hash == spec.hash
    assert text.startswith("study.yaml: "), text
    assert "\n" not in text, text
    assert len(text) < 10_000, text


@settings(max_examples=300, deadline=None, database=None)
@given(st.dictionaries(KEYS, VALUES, max_size=3))
def test_any_values_are_read_or_refused_in_one_line(changes):
    check(changes)


@pytest.mark.slow
@settings(max_examples=5000, deadline=None, database=None)
@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_values_are_read_or_refused_for_long(changes):
    check(changes)

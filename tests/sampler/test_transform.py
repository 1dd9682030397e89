"""The coordinates of the search: a value survives the way there and back, and stays in range."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from optuna_robustloss.sampler.transform import (
    ParameterTransform,
    SearchSpaceTransform,
    numerical_parameters,
    truncated_normal,
)

DISTRIBUTIONS = [
    FloatDistribution(-1.5, 3.0),
    FloatDistribution(1e-7, 10.0, log=True),
    FloatDistribution(-10.2, 10.2, step=0.1),
    FloatDistribution(0.0, 1.0, step=0.3),  # the last step does not fit: Optuna lowers the bound
    FloatDistribution(1e6, 1e6 + 1e-3),
    IntDistribution(-3, 10),
    IntDistribution(0, 1),
    IntDistribution(1, 1000, log=True),
    IntDistribution(-10, 11, step=5),
    IntDistribution(2**53 - 8, 2**53),
]
each_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=str)


@each_distribution
@settings(deadline=None)
@given(u=st.floats(-20, 20))
def test_any_point_becomes_a_value_that_the_distribution_contains(distribution, u):
    value = ParameterTransform.of(distribution).external(u)
    assert distribution._contains(distribution.to_internal_repr(value))
    assert type(value) is (int if isinstance(distribution, IntDistribution) else float)


@each_distribution
@settings(deadline=None)
@given(u=st.floats(-20, 20))
def test_a_value_survives_the_way_there_and_back(distribution, u):
    axis = ParameterTransform.of(distribution)
    value = axis.external(u)
    again = axis.external(axis.internal(value))
    if isinstance(distribution, IntDistribution):
        assert again == value
    else:
        assert again == pytest.approx(value, rel=1e-13, abs=1e-13)


@each_distribution
@settings(deadline=None)
@given(value=st.floats(-1e9, 1e9))
def test_values_out_of_range_count_as_the_nearest_bound(distribution, value):
    axis = ParameterTransform.of(distribution)
    low, high = axis.bounds
    assert low <= axis.internal(value) <= high
    if value < distribution.low:
        assert axis.internal(value) == axis.internal(distribution.low)
    if value > distribution.high:
        assert axis.internal(value) == axis.internal(distribution.high)


@each_distribution
def test_the_default_start_is_the_centre_with_a_sixth_of_the_range(distribution):
    low, high = ParameterTransform.of(distribution).bounds
    assert low == pytest.approx(-3, rel=1e-6)
    assert high == pytest.approx(3, rel=1e-6)


@each_distribution
def test_a_start_at_a_bound_is_within_the_bounds(distribution):
    for start in (distribution.low, distribution.high):
        axis = ParameterTransform.of(distribution, start=start)
        low, high = axis.bounds
        assert low <= 0 <= high
        assert axis.external(0.0) == pytest.approx(start, rel=1e-12)


def test_sigma_is_in_the_parameters_units_and_in_logarithms_for_log_parameters():
    linear = ParameterTransform.of(FloatDistribution(0, 10), start=4.0, sigma=0.5)
    assert linear.external(1.0) == 4.5
    log = ParameterTransform.of(
        FloatDistribution(1e-5, 1.0, log=True), start=1e-2, sigma=math.log(10)
    )
    assert log.external(-1.0) == pytest.approx(1e-3)


def test_the_outer_grid_points_get_a_whole_step_of_the_range():
    axis = ParameterTransform.of(IntDistribution(0, 4))
    drawn = [axis.external(u) for u in np.linspace(*axis.bounds, 50_001)]
    shares = np.bincount(drawn) / len(drawn)
    assert shares == pytest.approx(np.full(5, 0.2), abs=1e-3)


def test_a_unit_axis_has_the_range_zero_to_one():
    axis = ParameterTransform.unit(FloatDistribution(1e-3, 10, log=True))
    assert axis.bounds == (0.0, 1.0)
    assert axis.external(0.5) == pytest.approx(0.1)


def test_a_start_out_of_range_names_the_parameter_and_the_range():
    for start in (-0.1, 1.1, math.nan):
        with pytest.raises(
            ValueError, match=r"parameter 'x': the start .* is not within \[0.0, 1.0\]"
        ):
            SearchSpaceTransform.standardised({"x": FloatDistribution(0, 1)}, x0={"x": start})


def test_a_width_must_be_positive():
    for sigma in (0.0, -1.0, math.nan, math.inf):
        for widths in (sigma, {"x": sigma}):
            with pytest.raises(ValueError, match="parameter 'x': sigma0 must be a positive number"):
                SearchSpaceTransform.standardised({"x": FloatDistribution(0, 1)}, sigma0=widths)


def test_starts_and_widths_can_be_given_for_some_parameters_only():
    space = {"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 6)}
    transform = SearchSpaceTransform.standardised(space, x0={"x": 0.25}, sigma0={"x": 0.1})
    assert (transform.parameters["x"].centre, transform.parameters["x"].sigma) == (0.25, 0.1)
    assert (transform.parameters["y"].centre, transform.parameters["y"].sigma) == (3.0, 1.0)


def test_only_numbers_with_more_than_one_value_are_searched():
    space = {
        "c": CategoricalDistribution([1, 2]),
        "one": IntDistribution(3, 3),
        "single": FloatDistribution(0.5, 0.5),
        "step": FloatDistribution(0.0, 0.4, step=0.5),
        "x": FloatDistribution(0, 1),
        "n": IntDistribution(0, 1),
    }
    assert list(numerical_parameters(space)) == ["x", "n"]


def test_the_first_draws_follow_a_truncated_normal_distribution():
    rng = np.random.RandomState(0)
    drawn = np.array([truncated_normal(rng, -1.0, 2.0) for _ in range(20_000)])
    assert drawn.min() >= -1
    assert drawn.max() <= 2
    # Mean of N(0, 1) within [-1, 2]: (φ(-1) - φ(2)) / (Φ(2) - Φ(-1)).
    density = np.exp(-(np.array([-1.0, 2.0]) ** 2) / 2) / math.sqrt(2 * math.pi)
    mass = (math.erf(2 / math.sqrt(2)) + math.erf(1 / math.sqrt(2))) / 2
    assert drawn.mean() == pytest.approx((density[0] - density[1]) / mass, abs=0.02)


def test_a_range_that_is_never_hit_gives_its_nearest_bound():
    for low, high in ((20.0, 30.0), (-30.0, -20.0)):
        nearest = low if low > 0 else high
        assert truncated_normal(np.random.RandomState(0), low, high) == nearest

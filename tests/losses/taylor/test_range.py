"""The range that Eq. 5 divides by, against exhaustive and against strong heuristic searches."""

import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from losses.reference import (
    eq4,
    eq4_terms,
    few_valued_points,
    one_hot,
    random_theta,
    thetas,
    written_in,
)
from optuna_robustloss.losses import MAE_THETA, MSE_THETA, loss_range

VARIABLES = ["probability", "log"]

few = settings(max_examples=10, deadline=None)


def labelled_zero(points, theta, variable):
    """Loss at predictions ``(P, C)`` for label 0; any other label is a permutation of that."""
    y = one_hot(torch.tensor(0), points.shape[-1])
    return eq4(points, y, torch.as_tensor(theta, dtype=torch.float64), variable)


def simplex_grid(num_classes, cells):
    """All points of the simplex whose coordinates are multiples of 1/cells."""
    axes = torch.meshgrid([torch.arange(cells + 1)] * (num_classes - 1), indexing="ij")
    free = torch.stack([axis.flatten() for axis in axes], dim=-1)
    rest = cells - free.sum(-1, keepdim=True)
    return torch.cat([rest, free], dim=-1)[rest[:, 0] >= 0].double() / cells


GRIDS = {c: simplex_grid(c, cells) for c, cells in ((2, 4000), (3, 250), (4, 50))}
STEPS = {c: 1 / cells for c, cells in ((2, 4000), (3, 250), (4, 50))}


def exhaustive_minimum(num_classes, loss):
    """Least value on a dense grid, zoomed in around the best twenty points."""
    points, step = GRIDS[num_classes], STEPS[num_classes]
    offsets = torch.tensor(list(itertools.product(range(-3, 4), repeat=num_classes - 1))).double()
    offsets = torch.cat([-offsets.sum(-1, keepdim=True), offsets], dim=-1)
    for _ in range(8):
        best = points[loss(points).topk(min(20, len(points)), largest=False).indices]
        step /= 3
        points = (best[:, None] + step * offsets).flatten(0, 1)
        points = torch.cat([best, points[(points >= 0).all(-1)]])
    return loss(points).min().item()


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("num_classes", [2, 3, 4])
@few
@given(theta=thetas)
def test_range_is_that_of_an_exhaustive_search(num_classes, variable, theta):
    truth_min = exhaustive_minimum(num_classes, lambda p: labelled_zero(p, theta, variable))
    truth_max = -exhaustive_minimum(num_classes, lambda p: -labelled_zero(p, theta, variable))
    width = truth_max - truth_min
    assume(width > 1e-3)
    f_min, f_max = loss_range(theta, num_classes, variable=variable)
    # At most 1 % too narrow; wider than the truth only by what the zoom leaves.
    assert truth_min - 1e-4 * width <= f_min <= truth_min + 1e-2 * width
    assert truth_max - 1e-2 * width <= f_max <= truth_max + 1e-4 * width


def descend(theta, num_classes, variable, sign):
    """Multi-start gradient search through the softmax: corners, edges, random points."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([0.1, 1.0, 4.0, 12.0], dtype=torch.float64).repeat_interleave(4)
    logits = scales[:, None] * torch.randn(
        16, num_classes, generator=generator, dtype=torch.float64
    )
    logits[::2, 0] += 6.0  # half of the starts confident in the label
    logits.requires_grad_()
    optimiser = torch.optim.Adam([logits], lr=0.2)
    for _ in range(150):
        optimiser.zero_grad()
        losses = sign * labelled_zero(logits.softmax(-1), theta, variable)
        (num_classes * losses.sum()).backward()
        optimiser.step()
    return sign * losses.min().item()


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("num_classes", [10, 100, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_search_finds_a_wider_range(num_classes, variable):
    points = few_valued_points(num_classes)
    for seed in range(2):
        theta = random_theta(seed)
        f_min, f_max = loss_range(theta, num_classes, variable=variable)
        width = f_max - f_min
        values = labelled_zero(points, theta, variable)
        assert f_min <= values.min().item() + 1e-2 * width
        assert f_max >= values.max().item() - 1e-2 * width
        assert f_min <= descend(theta, num_classes, variable, 1) + 1e-2 * width
        assert f_max >= descend(theta, num_classes, variable, -1) - 1e-2 * width


@pytest.mark.parametrize("variable", VARIABLES)
@few
@given(theta=thetas, num_classes=st.sampled_from([2, 3, 10, 50]), seed=st.integers(0, 99))
def test_every_prediction_lies_inside(variable, theta, num_classes, seed):
    """Corners, edges and Dirichlet points from flat to nearly one-hot."""
    torch.manual_seed(seed)
    corners = torch.eye(num_classes, dtype=torch.float64)
    along = torch.rand(200, 1, dtype=torch.float64)
    ends = torch.randint(num_classes, (2, 200))
    edges = along * corners[ends[0]] + (1 - along) * corners[ends[1]]
    inside = [
        torch.distributions.Dirichlet(torch.full((num_classes,), a, dtype=torch.float64)).sample(
            (200,)
        )
        for a in (0.05, 0.3, 1.0, 5.0)
    ]
    values = labelled_zero(torch.cat([corners, edges, *inside]), theta, variable)
    f_min, f_max = loss_range(theta, num_classes, variable=variable)
    slack = 1e-2 * (f_max - f_min) + 1e-9
    assert f_min - slack <= values.min().item()
    assert values.max().item() <= f_max + slack


@pytest.mark.parametrize("variable", VARIABLES)
@few
@given(theta=thetas, num_classes=st.sampled_from([3, 10, 100, 1000]))
def test_range_is_never_wider_than_the_lagrangian_bound(variable, theta, num_classes):
    """For every λ, min Σ g_i(x_i) on Σ x_i = 1 is at least λ + Σ min_x [g_i(x) − λx]."""
    theta = torch.tensor(theta, dtype=torch.float64)
    x = torch.linspace(0, 1, 8193, dtype=torch.float64) ** 2
    other, labelled = (
        eq4_terms(written_in(x, variable), torch.full_like(x, y), theta) for y in (0, 1)
    )
    slopes = torch.linspace(-60, 60, 241, dtype=torch.float64)
    f_min, f_max = loss_range(theta, num_classes, variable=variable)
    for sign, extreme in ((1, f_min), (-1, -f_max)):
        inner = [(sign * g - slopes[:, None] * x).amin(1) for g in (labelled, other)]
        bound = (slopes + inner[0] + (num_classes - 1) * inner[1]).max().item() / num_classes
        assert extreme >= bound - 1e-4 * (f_max - f_min) - 1e-5


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_class_of_probability_zero_widens_nothing_away(variable):
    """C classes are a face of C + 1 classes, so the sum over classes reaches at least as far."""
    theta = random_theta(11)
    zero = torch.tensor(0.0, dtype=torch.float64)
    at_zero = eq4_terms(zero, zero, theta).item()
    for num_classes in (3, 9, 99):
        few_min, few_max = loss_range(theta, num_classes, variable=variable)
        more_min, more_max = loss_range(theta, num_classes + 1, variable=variable)
        assert (num_classes + 1) * more_min <= num_classes * few_min + at_zero + 1e-9
        assert (num_classes + 1) * more_max >= num_classes * few_max + at_zero - 1e-9


@pytest.mark.parametrize(
    "num_classes", [2, 3, 10, 100, 1000, pytest.param(1500, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("theta", [MAE_THETA, MSE_THETA], ids=["MAE", "MSE"])
def test_the_sums_of_absolute_and_squared_errors_run_over_two(theta, num_classes):
    f_min, f_max = loss_range(theta, num_classes)
    assert num_classes * (f_max - f_min) == pytest.approx(2, rel=1e-9)


@pytest.mark.parametrize("num_classes", [2, 10, 100, 1000])
def test_the_squared_norm_runs_from_uniform_to_one_hot(num_classes):
    f_min, f_max = loss_range([0, 0, 0, 2] + [0] * 8, num_classes)  # (1/C) Σ ŷ²
    assert num_classes * f_max == pytest.approx(1)
    assert num_classes * f_min == pytest.approx(1 / num_classes, abs=1e-3)
    assert num_classes * f_min >= 1 / num_classes - 1e-12


def test_the_sum_of_logarithms_runs_from_one_hot_to_uniform():
    f_min, f_max = loss_range([0, 0, 1] + [0] * 9, 10, variable="log")
    assert 10 * f_min == pytest.approx(1)
    assert 10 * f_max == pytest.approx(10 * math.log(11) / math.log(101), rel=1e-3)


def test_uniform_sampling_would_miss_most_of_the_range():
    """Why the range is searched: at C = 100 uniform points see a fraction of it."""
    torch.manual_seed(0)
    points = torch.distributions.Dirichlet(torch.ones(100, dtype=torch.float64)).sample((5000,))
    values = labelled_zero(points, random_theta(1), "probability")
    f_min, f_max = loss_range(random_theta(1), 100)
    assert (values.max() - values.min()).item() < 0.5 * (f_max - f_min)


def test_arguments_outside_their_domain():
    for theta, num_classes, variable, message in [
        ([0.0] * 11, 10, "probability", r"12 numbers .*\(11,\)"),
        ([[0.0] * 12] * 2, 10, "probability", r"one theta.*\(2, 12\)"),
        ([math.nan] * 12, 10, "probability", "finite"),
        ([0.5] * 11 + [math.inf], 10, "probability", "finite"),
        (MAE_THETA, 1, "probability", "at least 2, got 1"),
        (MAE_THETA, 10, "logit", "variable must be one of.*'logit'"),
    ]:
        with pytest.raises(ValueError, match=message):
            loss_range(theta, num_classes, variable=variable)

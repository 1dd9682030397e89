"""``TaylorLoss``: normalised by Eq. 5, a drop-in for ``nn.CrossEntropyLoss``."""

import copy
import math
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from losses.reference import (
    eq4_of_logits,
    few_valued_points,
    random_labels,
    random_logits,
    random_theta,
)
from optuna_robustloss.losses import MAE_THETA, MSE_THETA, TaylorLoss, loss_range, taylor_loss

VARIABLES = ["probability", "log"]


def logits_of(probability):
    return probability.clamp_min(1e-30).log()


# --- Eq. 5 ---


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
@pytest.mark.parametrize("eta", [0.25, 2.0, 10.0])
def test_losses_run_from_zero_to_eta(num_classes, variable, eta):
    """Corners, random points and few-valued points lie within and touch both ends to 1 %."""
    torch.manual_seed(0)
    random = torch.distributions.Dirichlet(torch.full((num_classes,), 0.3).double()).sample((500,))
    corners = torch.eye(num_classes, dtype=torch.float64)
    points = torch.cat([few_valued_points(num_classes), corners, random])
    for seed in range(3):
        loss = TaylorLoss(
            random_theta(seed), num_classes, eta=eta, reduction="none", variable=variable
        )
        values = loss(logits_of(points), torch.zeros(len(points), dtype=torch.long))
        assert values.min().item() == pytest.approx(0, abs=0.01 * eta)
        assert values.max().item() == pytest.approx(eta, abs=0.01 * eta)


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("soft", [False, True], ids=["index", "soft"])
def test_normalisation_is_eq5(soft, variable):
    logits, theta, eta = random_logits(0, 20, 10), random_theta(1), 3.0
    target = random_logits(2, 20, 10).softmax(-1) if soft else random_labels(2, 10, 20)
    f = eq4_of_logits(logits, target, theta, variable)
    f_min, f_max = loss_range(theta, 10, variable=variable)
    loss = TaylorLoss(theta, 10, eta=eta, reduction="none", variable=variable)
    torch.testing.assert_close(loss(logits, target), eta * (f - f_min) / (f_max - f_min))


def test_without_eta_the_loss_is_eq4_itself():
    logits, target, theta = random_logits(0, 20, 10), random_labels(2, 10, 20), random_theta(1)
    loss = TaylorLoss(theta, 10, eta=None)
    torch.testing.assert_close(loss(logits, target), taylor_loss(logits, target, theta))


def test_the_scale_of_theta_is_normalised_away():
    logits, target, theta = random_logits(0, 20, 10), random_labels(2, 10, 20), random_theta(1)
    larger = theta.clone()
    larger[2:] *= 7.0
    torch.testing.assert_close(
        TaylorLoss(theta, 10)(logits, target), TaylorLoss(larger, 10)(logits, target)
    )


@pytest.mark.parametrize("soft", [False, True], ids=["index", "soft"])
def test_cross_entropy_is_added_outside_eq5(soft):
    logits, theta = random_logits(0, 20, 10).requires_grad_(), random_theta(1)
    target = random_logits(2, 20, 10).softmax(-1) if soft else random_labels(2, 10, 20)
    for reduction in ("none", "sum", "mean"):
        plain = TaylorLoss(theta, 10, reduction=reduction)(logits, target)
        loss = TaylorLoss(theta, 10, reduction=reduction, cross_entropy_weight=0.3)(logits, target)
        expected = plain + 0.3 * F.cross_entropy(logits, target, reduction=reduction)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(
            *(torch.autograd.grad(x.sum(), logits, retain_graph=True) for x in (loss, expected))
        )


# --- A module like others ---


def test_trains_in_the_place_of_cross_entropy():
    torch.manual_seed(0)
    inputs = torch.randn(200, 4)
    target = (inputs @ torch.randn(4, 3)).argmax(-1)
    model, criterion = nn.Linear(4, 3), TaylorLoss(MAE_THETA, 3)
    optimiser = torch.optim.SGD([*model.parameters(), *criterion.parameters()], lr=1.0)
    for _ in range(200):
        optimiser.zero_grad()
        criterion(model(inputs), target).backward()
        optimiser.step()
    assert (model(inputs).argmax(-1) == target).float().mean() > 0.95


def test_has_no_parameters_and_a_state_like_that_of_cross_entropy():
    """So that checkpoints do not depend on which of the two a training script used."""
    weight = torch.rand(3)
    assert list(TaylorLoss(MAE_THETA, 3).parameters()) == []
    assert TaylorLoss(MAE_THETA, 3).state_dict().keys() == nn.CrossEntropyLoss().state_dict().keys()
    loss = TaylorLoss(MAE_THETA, 3, weight=torch.ones(3))
    loss.load_state_dict(nn.CrossEntropyLoss(weight=weight).state_dict())
    torch.testing.assert_close(loss.weight, weight)


def test_a_deep_copy_is_the_same_loss_and_independent():
    logits, target = random_logits(0, 20, 10), random_labels(2, 10, 20)
    loss = TaylorLoss(random_theta(1), 10)
    loss.provenance = {"study": "a"}
    twin = copy.deepcopy(loss)
    before = loss(logits, target)
    torch.testing.assert_close(twin(logits, target), before)
    twin.coefficients.zero_()
    twin.provenance["study"] = "b"
    torch.testing.assert_close(loss(logits, target), before)
    assert loss.provenance == {"study": "a"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_follows_a_model_to_another_dtype(dtype):
    """The coefficients are never rounded to half precision, nor is the loss computed in it."""
    weight = torch.tensor([0.5, 1.0, 2.0])
    expected = TaylorLoss(MSE_THETA, 3, weight=weight)(torch.ones(2, 3), torch.tensor([0, 1]))
    loss = TaylorLoss(MSE_THETA, 3, weight=weight).to(dtype)
    value = loss(torch.ones(2, 3, dtype=dtype), torch.tensor([0, 1]))
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.item() == pytest.approx(expected.item(), abs=1e-6)


def test_double_keeps_float64_logits_in_float64():
    loss = TaylorLoss(torch.tensor(MAE_THETA, dtype=torch.float64), 3)
    assert loss.coefficients.dtype == torch.float64
    assert loss.double()(torch.zeros(1, 3).double(), torch.tensor([0])).dtype == torch.float64
    assert TaylorLoss(MAE_THETA, 3).coefficients.dtype == torch.get_default_dtype()


def test_does_not_hold_on_to_the_tensor_it_was_built_from():
    theta = random_theta(1).requires_grad_()
    loss = TaylorLoss(theta, 3)
    assert not loss.coefficients.requires_grad
    before = loss.coefficients.clone()
    with torch.no_grad():
        theta.zero_()
    torch.testing.assert_close(loss.coefficients, before)
    assert loss.theta == tuple(random_theta(1).tolist())


# --- Printing ---


def printed_polynomial(text, label):
    """Coefficients by power, read back from the printed line."""
    (line,) = re.findall(rf"y={label}: (.*)", text)
    powers = {"": 0, " p": 1, " p²": 2, " p³": 3, " p⁴": 4}
    found = [0.0] * 5
    for sign, number, power in re.findall(r"(-?) ?([\d.e+-]+\d|\d)( p[²³⁴]?|)", line):
        found[powers[power]] = float(f"{sign}{number}")
    return found


def test_prints_the_normalised_polynomials():
    """MAE: Σ|ŷ − y| is (1/C)·Σ_i C·ŷ_i at y = 0 and (1/C)·Σ_i C·(1 − ŷ_i) at y = 1."""
    text = str(TaylorLoss(MAE_THETA, 10))
    assert "num_classes=10, eta=2.0, reduction='mean'" in text
    p0, p1 = printed_polynomial(text, 0), printed_polynomial(text, 1)
    # The gauge leaves the constant to Eq. 5 (f_min = 0): only the slopes are distinguished.
    assert (p0[1], p1[1]) == (10, -10)
    assert (p0[2:], p1[2:]) == ([0, 0, 0], [0, 0, 0])


@pytest.mark.parametrize("seed", range(5))
def test_the_printed_polynomials_are_the_loss(seed):
    logits = random_logits(0, 1, 3)
    loss = TaylorLoss(random_theta(seed), 3, eta=10)
    p0, p1 = (printed_polynomial(str(loss), label) for label in (0, 1))
    p = logits.softmax(-1)[0].tolist()
    value = sum(
        sum(c * p[i] ** k for k, c in enumerate(p1 if i == 1 else p0)) / 3 for i in range(3)
    )
    size = max(map(abs, p0 + p1))
    assert value == pytest.approx(loss(logits, torch.tensor([1])).item(), abs=5e-3 * size)


def test_prints_the_log_variable_and_the_cross_entropy_term():
    text = str(TaylorLoss(MAE_THETA, 10, variable="log", cross_entropy_weight=0.03))
    assert re.search(r"y=0: .* q", text)
    assert "q = log(1 + p/.01) / log(101)" in text
    assert "0.03 · cross-entropy" in text
    assert "cross-entropy" not in str(TaylorLoss(MAE_THETA, 10))


# --- Errors, at construction where possible ---


def test_arguments_outside_their_domain():
    for options, message in [
        ({"theta": MAE_THETA[:11]}, r"12 numbers .*\(11,\)"),
        ({"theta": (math.nan, *MAE_THETA[1:])}, "finite.*nan"),
        ({"theta": (*MAE_THETA[:11], math.inf)}, "finite.*inf"),
        ({"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ({"eta": 0}, "eta must be a positive number or None, got 0"),
        ({"eta": -1.0}, "eta .* got -1.0"),
        ({"eta": math.nan}, "eta .* got nan"),
        ({"eta": math.inf}, "eta .* got inf"),
        ({"cross_entropy_weight": -0.1}, "cross_entropy_weight must be a number ≥ 0, got -0.1"),
        ({"cross_entropy_weight": math.nan}, "cross_entropy_weight .* got nan"),
        ({"variable": "logit"}, "'probability', 'log'.*got 'logit'"),
        ({"weight": torch.ones(9)}, r"weight must be \(10,\), got \(9,\)"),
        ({"theta": [0.0] * 12}, "constant loss for 10 classes"),
        ({"theta": [0.3, 0.2, 5.0] + [0.0] * 9}, "constant loss for 10 classes"),
        ({"theta": [0.3, 0.2, 5.0] + [0.0] * 9, "num_classes": 1000}, "constant loss"),
        ({"theta": [0.0] * 12, "variable": "log"}, "constant loss for 10 classes"),
    ]:
        with pytest.raises(ValueError, match=message):
            TaylorLoss(**({"theta": MAE_THETA, "num_classes": 10} | options))


def test_a_linear_term_alone_is_constant_for_probabilities_only():
    theta = [0.3, 0.2, 5.0] + [0.0] * 9
    assert TaylorLoss(theta, 10, eta=None).eta is None  # nothing to normalise
    assert TaylorLoss(theta, 10, variable="log").eta == 2.0


def test_another_number_of_classes_is_refused():
    for shape in ((4, 3), (4, 9, 2)):
        target = torch.zeros(shape[:1] + shape[2:], dtype=torch.long)
        with pytest.raises(ValueError, match=f"have {shape[1]} classes, the loss was built for 10"):
            TaylorLoss(MAE_THETA, 10)(torch.zeros(shape), target)


# --- The function ---


def test_the_function_takes_classes_last_and_in_the_order_of_cross_entropy():
    theta = random_theta(4)
    for shape in ((5,), (4, 5), (2, 3, 5), (2, 3, 4, 5)):
        logits, target = random_logits(0, *shape), random_labels(1, 5, *shape[:-1])
        losses = taylor_loss(logits, target, theta, reduction="none")
        torch.testing.assert_close(losses, eq4_of_logits(logits, target, theta))
    logits, target = random_logits(0, 2, 3, 3), random_labels(1, 3, 2, 3)  # both would fit
    losses = taylor_loss(logits, target, theta, reduction="none")
    torch.testing.assert_close(losses, eq4_of_logits(logits.movedim(1, -1), target, theta))


def test_the_function_refuses_what_the_module_refuses():
    with pytest.raises(ValueError, match=r"'mean', 'sum', 'none'.*got 'average'"):
        taylor_loss(torch.zeros(1, 3), torch.tensor([0]), MAE_THETA, reduction="average")
    with pytest.raises(IndexError, match="label 3 is out of range for 3 classes"):
        taylor_loss(torch.zeros(1, 3), torch.tensor([3]), MAE_THETA)


def test_a_population_that_does_not_fit():
    for logits_shape, target_shape, message in [
        ((4, 6, 3), (6,), r"\(K, N, C\) with the same K, got \(4, 6, 3\)"),
        ((6, 3), (6,), r"got \(6, 3\)"),
        ((2, 6, 3), (5,), r"\(2, 6\) or \(6,\), got \(5,\)"),
    ]:
        thetas = random_theta(0, population=2)
        with pytest.raises(ValueError, match=message):
            taylor_loss(random_logits(0, *logits_shape), random_labels(0, 3, *target_shape), thetas)

"""CE_ε + MAE against the formulas as printed, in Python loops."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from losses.reference import one_hot, random_labels, random_logits
from optuna_robustloss.losses import EpsilonSoftmaxLoss, MAELoss
from optuna_robustloss.losses.published.epsilon_softmax import log_epsilon_softmax


def epsilon_softmax(p, m):
    largest = p.index(max(p))
    return [(pk + m * (k == largest)) / (m + 1) for k, pk in enumerate(p)]


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("m", [0.0, 3.0, 1e5])
@pytest.mark.parametrize("p_min", [0.0, 1e-8, 1e-3])
def test_the_sum_of_cross_entropy_of_epsilon_softmax_and_mae(classes, m, p_min):
    logits, target = random_logits(0, 12, classes), random_labels(1, classes, 12)
    soft = random_logits(2, 12, classes).softmax(-1)
    loss = EpsilonSoftmaxLoss(2.0, 3.0, m, p_min=p_min, reduction="none")
    p = logits.softmax(-1).tolist()
    for given_labels, labels in ((target, one_hot(target, classes)), (soft, soft)):
        expected = []
        for pi, yi in zip(p, labels.tolist(), strict=True):
            raised = epsilon_softmax(pi, m)
            ce = -sum(y * math.log(max(r, p_min)) for y, r in zip(yi, raised, strict=True))
            mae = sum(abs(a - b) for a, b in zip(pi, yi, strict=True))
            expected.append(2 * ce + 3 * mae)
        torch.testing.assert_close(
            loss(logits, given_labels), torch.tensor(expected, dtype=torch.float64)
        )


@given(st.lists(st.floats(-200, 200), min_size=2, max_size=12), st.floats(0, 1e6))
def test_epsilon_softmax_is_a_distribution_near_one_hot(logits, m):
    row = torch.tensor(logits, dtype=torch.float64)
    raised = log_epsilon_softmax(row, m).exp()
    assert raised.sum().item() == pytest.approx(1)
    assert (raised - F.one_hot(row.argmax(), len(row))).abs().max() <= 1 / (m + 1) + 1e-12


def test_in_float32_the_predicted_class_keeps_its_gradient():
    """m + ŷ at m = 10⁵ would round ŷ to 1/128; d/dz −log ŷ'_t = −ŷ_t (1 − ŷ_t)/(m + ŷ_t)."""
    logits = torch.tensor([[0.01, 0.0]], requires_grad=True)
    EpsilonSoftmaxLoss(1.0, 0.0)(logits, torch.tensor([0])).backward()
    p = 1 / (1 + math.exp(-0.01))
    assert logits.grad[0, 0].item() == pytest.approx(-p * (1 - p) / (1e5 + p), rel=1e-4)


def test_without_m_it_is_cross_entropy_and_mae():
    logits, target = random_logits(0, 12, 5), random_labels(1, 5, 12)
    torch.testing.assert_close(
        EpsilonSoftmaxLoss(2.0, 3.0, 0.0)(logits, target),
        2 * F.cross_entropy(logits, target) + 3 * MAELoss()(logits, target),
    )


@pytest.mark.parametrize("m", [0.0, 1e-9, 1e5])
@pytest.mark.parametrize("p_min", [0.0, 1e-8])
def test_gradients_are_finite_at_probabilities_of_zero(m, p_min):
    logits = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    EpsilonSoftmaxLoss(1.0, 1.0, m, p_min=p_min)(logits, torch.tensor([2])).backward()
    assert logits.grad.isfinite().all()


def test_a_label_below_the_floor_gets_no_gradient_from_cross_entropy():
    logits = torch.tensor([[20.0, 0.0]])
    slope = {}
    for p_min in (0.0, 1e-8):
        z = logits.clone().requires_grad_()
        EpsilonSoftmaxLoss(1.0, 0.0, p_min=p_min)(z, torch.tensor([1])).backward()
        slope[p_min] = z.grad[0, 1].item()
    assert slope == {0.0: pytest.approx(-1), 1e-8: 0}


def test_defaults_are_those_of_symmetric_noise_on_cifar10():
    text = "EpsilonSoftmaxLoss(alpha=0.01, beta=5, m=100000, p_min=1e-08)"
    assert str(EpsilonSoftmaxLoss()) == text


def test_constants_out_of_their_domain():
    for name, value in product(("alpha", "beta", "m"), (-1.0, math.nan, math.inf)):
        with pytest.raises(ValueError, match=f"{name} must be a number ≥ 0, got {value}"):
            EpsilonSoftmaxLoss(**{name: value})
    for p_min in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match=rf"p_min must be in \[0, 1\), got {p_min}"):
            EpsilonSoftmaxLoss(p_min=p_min)

"""Normalised and active-passive losses against the formulas as printed, in Python loops."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from losses.reference import one_hot, random_labels, random_logits
from optuna_robustloss.losses import ANLCELoss, NCEandMAELoss, NCEandRCELoss, NCELoss

#: Logits of a sample, mild and saturated.
samples = st.lists(st.floats(-200, 200), min_size=2, max_size=12)


@pytest.fixture(params=[2, 10, 100], ids=lambda c: f"C={c}")
def batch(request):
    """Logits, some with probabilities below 10⁻⁷; labels as indices, one-hot and soft ones."""
    classes = request.param
    logits, target = 6 * random_logits(0, 12, classes), random_labels(1, classes, 12)
    soft = random_logits(2, 12, classes).softmax(-1)
    return logits, target, one_hot(target, classes), soft


def nce(p, y):
    """Cross-entropy over its sum over all labels."""
    active = -sum(yk * math.log(pk) for pk, yk in zip(p, y, strict=True))
    return active / sum(-math.log(pk) for pk in p)


def nnce(p, y, p_min=1e-7):
    """1 − (A − CE) / Σ_j (A − CE_j), CE with ŷ ≥ p_min and A its largest value."""
    A = -math.log(p_min)
    negative = [A + math.log(max(pk, p_min)) for pk in p]
    return sum(yk * (1 - nk / sum(negative)) for yk, nk in zip(y, negative, strict=True))


def mae(p, y):
    return sum(abs(pk - yk) for pk, yk in zip(p, y, strict=True)) / 2


def rce(p, y, A):
    return -sum(pk * (max(math.log(yk), A) if yk else A) for pk, yk in zip(p, y, strict=True))


def check(loss, batch, formula):
    logits, target, y, soft = batch
    p = logits.softmax(-1).tolist()
    for given_labels, labels in ((target, y), (soft, soft)):
        pairs = zip(p, labels.tolist(), strict=True)
        expected = torch.tensor([formula(*pair) for pair in pairs], dtype=torch.float64)
        torch.testing.assert_close(loss(logits, given_labels), expected)


def of_all_labels(loss, logits):
    """The losses ``(C,)`` of one sample under each label."""
    logits = torch.tensor(logits, dtype=torch.float64)
    classes = len(logits)
    return loss(logits.expand(classes, classes), torch.arange(classes))


# --- Formulas ---


def test_nce(batch):
    check(NCELoss(reduction="none"), batch, nce)


def test_nce_and_mae(batch):
    loss = NCEandMAELoss(2.0, 3.0, reduction="none")
    check(loss, batch, lambda p, y: 2 * nce(p, y) + 3 * mae(p, y))


@pytest.mark.parametrize("A", [math.log(1e-4), -4.0])
def test_nce_and_rce(batch, A):
    loss = NCEandRCELoss(2.0, 3.0, A, reduction="none")
    check(loss, batch, lambda p, y: 2 * nce(p, y) + 3 * rce(p, y, A))


@pytest.mark.parametrize("p_min", [1e-7, 1e-3])
def test_anl_ce(batch, p_min):
    loss = ANLCELoss(2.0, 3.0, p_min=p_min, reduction="none")
    check(loss, batch, lambda p, y: 2 * nce(p, y) + 3 * nnce(p, y, p_min))


# --- What normalisation is for: the sum over the labels does not depend on the prediction ---


@given(samples)
def test_nce_summed_over_the_labels_is_one(logits):
    losses = of_all_labels(NCELoss(reduction="none"), logits)
    assert losses.sum().item() == pytest.approx(1)
    assert ((losses >= 0) & (losses <= 1)).all()


@given(samples)
def test_nnce_summed_over_the_labels_is_one_less_than_their_number(logits):
    losses = of_all_labels(ANLCELoss(0.0, 1.0, reduction="none"), logits)
    assert losses.sum().item() == pytest.approx(len(logits) - 1)
    assert ((losses >= -1e-12) & (losses <= 1)).all()


@given(samples)
def test_active_passive_losses_are_symmetric(logits):
    others = len(logits) - 1
    for loss, total in (
        (NCEandMAELoss(2.0, 3.0, reduction="none"), 2 + 3 * others),
        (NCEandRCELoss(2.0, 3.0, -4.0, reduction="none"), 2 + 12 * others),
    ):
        assert of_all_labels(loss, logits).sum().item() == pytest.approx(total)


def test_a_saturated_prediction_pulls_no_class_below_the_floor():
    """ANL-CE's negative term is constant in ŷ < p_min: its gradient there is zero, not huge."""
    logits = torch.tensor([[40.0, 0.0, 0.0]], requires_grad=True)
    loss = ANLCELoss(0.0, 1.0)(logits, torch.tensor([1]))
    loss.backward()
    assert loss.item() == 1
    assert not logits.grad.any()


# --- L1 term ---


def test_the_regularizer_is_the_l1_norm_of_all_parameters():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    loss = ANLCELoss(l1=0.01)
    norm = sum(abs(w) for p in net.parameters() for w in p.flatten().tolist())
    term = loss.regularizer(net.parameters())
    assert term.item() == pytest.approx(0.01 * norm)
    term.backward()
    torch.testing.assert_close(net[0].bias.grad, 0.01 * net[0].bias.sign())


def test_the_regularizer_is_switched_off_by_zero():
    assert ANLCELoss(l1=0.0).regularizer([torch.ones(3)]) == 0
    assert ANLCELoss().regularizer([]) == 0


# --- Arguments ---


def test_defaults_are_the_published_ones_for_cifar10():
    anl = ANLCELoss()
    assert (anl.alpha, anl.beta, anl.l1, anl.p_min) == (5.0, 5.0, 5e-5, 1e-7)
    assert (NCEandMAELoss().alpha, NCEandMAELoss().beta) == (1.0, 1.0)
    assert str(NCEandRCELoss()) == "NCEandRCELoss(alpha=1, beta=1, A=-9.21034)"
    assert str(anl) == "ANLCELoss(alpha=5, beta=5, l1=5e-05, p_min=1e-07)"


def test_weights_are_numbers_not_below_zero():
    for loss, name, value in product(
        (NCEandMAELoss, NCEandRCELoss, ANLCELoss), ("alpha", "beta"), (-1.0, math.nan, math.inf)
    ):
        with pytest.raises(ValueError, match=f"{name} must be a number ≥ 0, got {value}"):
            loss(**{name: value})


def test_log_zero_is_a_negative_number():
    for A in (0.0, 1.0, -math.inf, math.nan):
        with pytest.raises(ValueError, match=f"A must be a number < 0, got {A}"):
            NCEandRCELoss(A=A)


def test_anl_ce_refuses_other_floors_and_l1():
    for p_min in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match=rf"p_min must be in \(0, 1\), got {p_min}"):
            ANLCELoss(p_min=p_min)
    with pytest.raises(ValueError, match="l1 must be a number ≥ 0, got -1"):
        ANLCELoss(l1=-1.0)

"""MAE, GCE and SCE against what their papers print; what all losses share is in test_contract."""

import math

import pytest
import torch
from torch.nn import functional as F

from losses.reference import one_hot, random_labels, random_logits
from optuna_robustloss.losses import (
    MAE_THETA,
    GCELoss,
    MAELoss,
    SCELoss,
    TaylorLoss,
)


@pytest.fixture(params=[2, 10, 100], ids=lambda c: f"C={c}")
def batch(request):
    """Logits, labels, their probabilities and one-hot form, and soft labels."""
    num_classes = request.param
    logits, target = random_logits(0, 30, num_classes), random_labels(1, num_classes, 30)
    soft = random_logits(2, 30, num_classes).softmax(-1)
    return logits, target, logits.softmax(-1), one_hot(target, num_classes), soft


# --- Slow references ---


def test_mae_is_the_sum_of_absolute_errors(batch):
    logits, target, p, y, soft = batch
    loss = MAELoss(reduction="none")
    torch.testing.assert_close(loss(logits, target), (p - y).abs().sum(-1))
    torch.testing.assert_close(loss(logits, soft), (p - soft).abs().sum(-1))


def test_mae_is_the_member_of_the_taylor_family(batch):
    logits, target, *_ = batch
    theta = torch.tensor(MAE_THETA, dtype=torch.float64)
    member = TaylorLoss(theta, logits.shape[-1], eta=2)
    torch.testing.assert_close(MAELoss()(logits, target), member(logits, target))


@pytest.mark.parametrize("q", [0.1, 0.7, 1.0])
def test_gce_is_the_box_cox_transform_of_the_probability(batch, q):
    logits, target, p, y, soft = batch
    loss, terms = GCELoss(q, reduction="none"), (1 - p**q) / q
    torch.testing.assert_close(loss(logits, target), (y * terms).sum(-1))
    torch.testing.assert_close(loss(logits, soft), (soft * terms).sum(-1))


def test_gce_runs_from_cross_entropy_to_half_of_mae(batch):
    logits, target, _, _, soft = batch
    for labels in (target, soft):
        torch.testing.assert_close(
            GCELoss(1e-7)(logits, labels), F.cross_entropy(logits, labels), rtol=1e-5, atol=0
        )
    torch.testing.assert_close(GCELoss(1.0)(logits, target), MAELoss()(logits, target) / 2)


@pytest.mark.parametrize(("alpha", "beta", "A"), [(0.1, 1.0, -4.0), (6.0, 0.1, -6.0), (0, 1, -4)])
def test_sce_is_cross_entropy_both_ways(batch, alpha, beta, A):
    """With log 0 set to A in the reverse term −Σ ŷ·log y."""
    logits, target, p, y, soft = batch
    loss = SCELoss(alpha, beta, A, reduction="none")
    log_y = torch.where(y > 0, 0.0, A).double()
    expected = alpha * -(y * p.log()).sum(-1) + beta * -(p * log_y).sum(-1)
    torch.testing.assert_close(loss(logits, target), expected)
    expected = alpha * -(soft * p.log()).sum(-1) + beta * -(p * soft.log().clamp(min=A)).sum(-1)
    torch.testing.assert_close(loss(logits, soft), expected)


def test_log_zero_of_the_authors_code_is_one_option_away(batch):
    """Their code clips one-hot labels at 10⁻⁴; ours sets log 0 to −4 by default."""
    logits, target, p, y, _ = batch
    assert SCELoss().A == -4
    reverse = -(p * y.clamp(1e-4, 1).log()).sum(-1)
    loss = SCELoss(0.0, 1.0, "code", reduction="none")
    torch.testing.assert_close(loss(logits, target), reverse)


# --- Arguments ---


def test_gce_refuses_other_q():
    for q in (0, -0.5, 1.1, math.nan):
        with pytest.raises(ValueError, match=rf"q must be in \(0, 1\], got {q}"):
            GCELoss(q)


def test_sce_refuses_other_weights():
    for options in [
        {"alpha": -0.1},
        {"beta": -1.0},
        {"A": 0.0},
        {"A": 4.0},
        {"A": -math.inf},
        {"alpha": math.nan},
        {"beta": math.inf},
    ]:
        (name, value), *_ = options.items()
        with pytest.raises(ValueError, match=f"alpha, beta ≥ 0 and A < 0.*{name}={value}"):
            SCELoss(**options)


def test_arguments_are_printed():
    assert str(GCELoss(0.5)) == "GCELoss(q=0.5)"
    assert str(SCELoss(6, 0.1, -6)) == "SCELoss(alpha=6, beta=0.1, A=-6)"

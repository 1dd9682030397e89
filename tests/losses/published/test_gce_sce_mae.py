"""Hand-made losses against what their papers print; shapes and weights are in test_layout."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from losses.reference import one_hot, random_labels, random_logits
from optuna_robustloss.losses import (
    MAE_THETA,
    GCELoss,
    MAELoss,
    ScaledLoss,
    SCELoss,
    TaylorLoss,
)

LOSSES = {"MAE": MAELoss, "GCE": GCELoss, "SCE": SCELoss}

every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


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


@every_loss
def test_one_hot_probabilities_are_class_indices(batch, loss):
    logits, target, _, y, _ = batch
    torch.testing.assert_close(loss()(logits, y), loss()(logits, target))


def test_a_scaled_loss_is_the_loss_times_a_number(batch):
    logits, target, *_ = batch
    logits.requires_grad_()
    for criterion in (nn.CrossEntropyLoss(), SCELoss(), GCELoss(reduction="none")):
        loss, plain = ScaledLoss(criterion, 0.2)(logits, target), criterion(logits, target)
        torch.testing.assert_close(loss, 0.2 * plain)
        torch.testing.assert_close(
            torch.autograd.grad(loss.sum(), logits)[0],
            0.2 * torch.autograd.grad(plain.sum(), logits)[0],
        )


# --- Gradients ---


@every_loss
@pytest.mark.parametrize("soft", [False, True], ids=["index", "soft"])
def test_first_and_second_derivatives(loss, soft):
    logits = random_logits(0, 2, 3).requires_grad_()
    target = random_logits(1, 2, 3).softmax(-1) if soft else random_labels(1, 3, 2)
    assert torch.autograd.gradcheck(lambda z: loss()(z, target), (logits,))
    assert torch.autograd.gradgradcheck(lambda z: loss()(z, target), (logits,))


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("soft", [False, True], ids=["index", "soft"])
def test_extreme_logits_have_finite_values_and_gradients(loss, dtype, soft):
    """Where ŷ underflows to zero, ŷ^(q−1) and 1/ŷ are infinite; the loss must not go there."""
    logits = torch.tensor([[3e4, 0.0, -3e4], [-3e4, 0.0, 3e4], [0, 0, 0]], dtype=dtype)
    logits.requires_grad_()
    target = torch.tensor([0, 0, 1])
    target = one_hot(target, 3).to(dtype) if soft else target
    value = loss(reduction="sum")(logits, target)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert logits.grad.isfinite().all()


@every_loss
def test_half_precision_is_computed_in_float32(loss):
    logits, target = random_logits(0, 30, 10).bfloat16(), random_labels(1, 10, 30)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss()(logits, target)
    torch.testing.assert_close(value, loss()(logits.float(), target))


# --- Arguments ---


@pytest.mark.parametrize("q", [0, -0.5, 1.1, math.nan])
def test_gce_refuses_other_q(q):
    with pytest.raises(ValueError, match=rf"q must be in \(0, 1\], got {q}"):
        GCELoss(q)


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": -0.1},
        {"beta": -1.0},
        {"A": 0.0},
        {"A": 4.0},
        {"A": -math.inf},
        {"alpha": math.nan},
        {"beta": math.inf},
    ],
)
def test_sce_refuses_other_weights(options):
    (name, value), *_ = options.items()
    with pytest.raises(ValueError, match=f"alpha, beta ≥ 0 and A < 0.*{name}={value}"):
        SCELoss(**options)


@pytest.mark.parametrize("scale", [0, -1.0, math.nan, math.inf])
def test_scaled_loss_refuses_other_scales(scale):
    with pytest.raises(ValueError, match=f"scale must be a positive number, got {scale}"):
        ScaledLoss(MAELoss(), scale)


def test_arguments_are_printed():
    assert str(GCELoss(0.5)) == "GCELoss(q=0.5)"
    assert str(SCELoss(6, 0.1, -6)) == "SCELoss(alpha=6, beta=0.1, A=-6)"
    assert "scale=0.2" in str(ScaledLoss(MAELoss(), 0.2))


@every_loss
def test_weights_move_with_the_module(loss):
    criterion = loss(weight=torch.ones(3)).double()
    assert criterion.weight.dtype == torch.float64
    assert "weight" in criterion.state_dict()

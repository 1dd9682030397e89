"""A loss times a number, which passes on its inner loss's attributes for the training loop."""

import math

import pytest
import torch
from torch import nn

from losses.reference import random_labels, random_logits
from optuna_robustloss.losses import ANLCELoss, ELRLoss, GCELoss, MAELoss, ScaledLoss, SCELoss


def test_a_scaled_loss_is_the_loss_times_a_number():
    logits, target = random_logits(0, 30, 10).requires_grad_(), random_labels(1, 10, 30)
    for criterion in (nn.CrossEntropyLoss(), SCELoss(), GCELoss(reduction="none")):
        loss, plain = ScaledLoss(criterion, 0.2)(logits, target), criterion(logits, target)
        torch.testing.assert_close(loss, 0.2 * plain)
        torch.testing.assert_close(
            torch.autograd.grad(loss.sum(), logits)[0],
            0.2 * torch.autograd.grad(plain.sum(), logits)[0],
        )
    assert "scale=0.2" in str(ScaledLoss(MAELoss(), 0.2))


def test_scales_are_positive_numbers():
    for scale in (0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"scale must be a positive number, got {scale}"):
            ScaledLoss(MAELoss(), scale)


def test_the_l1_term_is_scaled_like_the_loss():
    loss = ScaledLoss(ScaledLoss(ANLCELoss(l1=0.01), 0.5), 0.2)
    assert loss.l1 == pytest.approx(0.001)


def test_losses_without_an_l1_term_or_indices():
    for criterion in (MAELoss(), nn.CrossEntropyLoss()):
        loss = ScaledLoss(criterion, 0.2)
        assert loss.l1 == 0
        assert loss.takes_index is False


def test_indices_reach_the_inner_loss():
    logits, target, index = random_logits(0, 3, 4), random_labels(1, 4, 3), torch.tensor([4, 0, 2])
    plain, scaled = ELRLoss(5, 4).double(), ScaledLoss(ELRLoss(5, 4).double(), 0.2)
    assert scaled.takes_index is True
    value = scaled(logits, target, index)
    torch.testing.assert_close(value, 0.2 * plain(logits, target, index))
    assert torch.equal(scaled.criterion.average, plain.average)

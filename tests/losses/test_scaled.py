"""A scaled loss passes on what its inner loss asks of the training loop."""

import pytest
import torch
from torch import nn

from losses.reference import random_labels, random_logits
from optuna_robustloss.losses import ANLCELoss, ELRLoss, MAELoss, ScaledLoss


def test_the_l1_term_is_scaled_like_the_loss():
    loss = ScaledLoss(ScaledLoss(ANLCELoss(l1=0.01), 0.5), 0.2)
    assert loss.l1 == pytest.approx(0.001)


@pytest.mark.parametrize("criterion", [MAELoss(), nn.CrossEntropyLoss()])
def test_losses_without_an_l1_term_or_indices(criterion):
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

"""Which losses have a closed form, and that it gives the gradient of autograd."""

import pytest
import torch
from torch import nn

from losses.reference import random_labels, random_logits
from optuna_robustloss.losses import (
    CONFIRM_THETA,
    MAE_THETA,
    GCELoss,
    MAELoss,
    PhasedLoss,
    ScaledLoss,
    TaylorLoss,
)
from optuna_robustloss.losses.closed_form import closed_form, late_share, stack_gradients

CLASSES = 7


def taylor(theta=MAE_THETA, **options):
    return TaylorLoss(theta, CLASSES, **options)


def phased(early, late, **options):
    return PhasedLoss(early, late, switch=0.25, width=0.5, **options)


def by_autograd(loss, logits, target):
    """The slow reference."""
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf, target), leaf)
    return gradient


def test_gradients_of_a_stack_are_those_of_autograd():
    losses = [
        taylor(),
        taylor(torch.randn(12, generator=torch.Generator().manual_seed(3)), eta=None),
        taylor(CONFIRM_THETA, cross_entropy_weight=0.3),
        ScaledLoss(ScaledLoss(taylor(cross_entropy_weight=2.0), 0.5), 3.0),
    ]
    logits, target = random_logits(0, 5, CLASSES).float(), random_labels(1, CLASSES, 5)
    gradient = stack_gradients([closed_form(loss).early for loss in losses])
    for computed, loss in zip(gradient(logits.expand(4, -1, -1), target), losses, strict=True):
        torch.testing.assert_close(computed, by_autograd(loss, logits, target))


def test_a_loss_with_phases_gives_both_and_when_they_change():
    form = closed_form(ScaledLoss(phased(taylor(), ScaledLoss(taylor(), 0.5)), 3.0))
    assert (form.early.scale, form.late.scale) == (3.0, 1.5)
    shares = [form.late_share(progress) for progress in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert shares == [late_share(p, 0.25, 0.5) for p in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert shares == [0.0, 0.0, 0.5, 1.0, 1.0]


def test_a_loss_without_phases_never_changes():
    form = closed_form(taylor())
    assert form.early is form.late
    assert form.late_share(1.0) == 0.0


def test_losses_without_a_closed_form():
    class Changed(TaylorLoss):
        def forward(self, logits, target):
            return super().forward(logits, target) ** 2

    class Doubled(ScaledLoss):
        pass

    class Reversed(PhasedLoss):
        pass

    for loss in (
        nn.CrossEntropyLoss(),
        GCELoss(),
        ScaledLoss(MAELoss(), 2.0),
        taylor(reduction="sum"),
        taylor(weight=torch.ones(CLASSES)),
        taylor(ignore_index=3),
        Changed(MAE_THETA, CLASSES),
        Doubled(taylor(), 2.0),
        Reversed(taylor(), taylor(), switch=0.5),
        phased(taylor(), MAELoss()),
        phased(taylor(), taylor()).eval(),
    ):
        assert closed_form(loss) is None, loss


def test_losses_of_different_variables_cannot_be_stacked():
    forms = [closed_form(taylor(variable=name)).early for name in ("probability", "log")]
    with pytest.raises(ValueError, match="one variable, got \\['log', 'probability'\\]"):
        stack_gradients(forms)

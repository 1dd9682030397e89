"""AMSE and JAL-CE against the formulas as printed, and as points of the Taylor family."""

import math

import pytest
import torch
from torch import nn

from losses.reference import one_hot, random_labels, random_logits
from optuna_robustloss.losses import AMSELoss, JALCELoss, NCELoss, TaylorLoss


@pytest.fixture(params=[2, 10, 100], ids=lambda c: f"C={c}")
def batch(request):
    """Logits, labels, their one-hot form, and soft labels."""
    classes = request.param
    logits, target = 3 * random_logits(0, 12, classes), random_labels(1, classes, 12)
    return logits, target, one_hot(target, classes), random_logits(2, 12, classes).softmax(-1)


def amse(p, y, a):
    """The mean over classes of (p_k − a·y_k)², in a Python loop."""
    return sum((pk - a * yk) ** 2 for pk, yk in zip(p, y, strict=True)) / len(p)


@pytest.mark.parametrize("a", [0.0, 1.0, 30.0])
def test_amse_and_jal_ce(batch, a):
    logits, target, y, soft = batch
    for given_labels, labels in ((target, y), (soft, soft)):
        pairs = zip(logits.softmax(-1).tolist(), labels.tolist(), strict=True)
        expected = torch.tensor([amse(*pair, a) for pair in pairs], dtype=torch.float64)
        found = AMSELoss(a, reduction="none")(logits, given_labels)
        torch.testing.assert_close(found, expected)
        joint = 2 * NCELoss(reduction="none")(logits, given_labels) + 3 * expected
        found = JALCELoss(2.0, 3.0, a, reduction="none")(logits, given_labels)
        torch.testing.assert_close(found, joint)


def test_amse_is_a_member_of_the_taylor_family(batch):
    """θ3 = 2 gives ŷ², θ6 = −2a gives −2a·ŷ·y; only the constant a²/C is missing."""
    logits, target, *_ = batch
    a, classes = 30.0, logits.shape[-1]
    theta = torch.tensor([0, 0, 0, 2, 0, 0, -2 * a, 0, 0, 0, 0, 0], dtype=torch.float64)
    member = TaylorLoss(theta, classes, eta=None, reduction="none")(logits, target)
    found = AMSELoss(a, reduction="none")(logits, target)
    torch.testing.assert_close(found, member + a**2 / classes)


def test_the_regularizer_is_the_l1_norm_of_all_parameters():
    net = nn.Linear(3, 4)
    norm = sum(abs(w) for p in net.parameters() for w in p.flatten().tolist())
    assert JALCELoss(l1=0.01).regularizer(net.parameters()).item() == pytest.approx(0.01 * norm)


def test_arguments():
    assert str(JALCELoss()) == "JALCELoss(alpha=1, beta=1, a=30, l1=5e-05)"
    for loss in (AMSELoss, JALCELoss):
        for value in (-1.0, math.nan, math.inf):
            with pytest.raises(ValueError, match=f"a must be a number ≥ 0, got {value}"):
                loss(a=value)

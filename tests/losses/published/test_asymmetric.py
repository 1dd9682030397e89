"""Asymmetric generalised cross-entropy against the formula as printed."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from losses.reference import one_hot, random_labels, random_logits
from optuna_robustloss.losses import AGCELoss, GCELoss, NCEandAGCELoss, NCELoss


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize(("a", "q"), [(0.6, 0.6), (6.0, 1.5), (1.8, 3.0), (1e-5, 0.5)])
def test_agce(classes, a, q):
    logits, target = random_logits(0, 12, classes), random_labels(1, classes, 12)
    soft = random_logits(2, 12, classes).softmax(-1)
    p, loss = logits.softmax(-1).tolist(), AGCELoss(a, q, reduction="none")
    for given_labels, labels in ((target, one_hot(target, classes)), (soft, soft)):
        expected = [
            sum(yk * ((a + 1) ** q - (a + pk) ** q) / q for pk, yk in zip(*pair, strict=True))
            for pair in zip(p, labels.tolist(), strict=True)
        ]
        torch.testing.assert_close(
            loss(logits, given_labels), torch.tensor(expected, dtype=torch.float64)
        )


def test_with_a_small_offset_agce_is_gce():
    logits, target = random_logits(0, 12, 5), random_labels(1, 5, 12)
    torch.testing.assert_close(AGCELoss(1e-12, 0.7)(logits, target), GCELoss(0.7)(logits, target))


@given(
    st.lists(st.floats(-200, 200), min_size=2, max_size=12),
    st.floats(0.01, 10),
    st.floats(0.1, 4),
)
def test_agce_is_bounded_and_lowest_for_the_likeliest_label(logits, a, q):
    row = torch.tensor(logits, dtype=torch.float64)
    losses = AGCELoss(a, q, reduction="none")(row.expand(len(row), -1), torch.arange(len(row)))
    highest = ((a + 1) ** q - a**q) / q
    assert (losses >= -1e-9 * highest).all()
    assert (losses <= highest * (1 + 1e-9)).all()
    torch.testing.assert_close(losses[row.argmax()], losses.min(), atol=0, rtol=1e-12)


def test_nce_and_agce_is_the_sum_of_its_parts():
    logits, target = random_logits(0, 12, 5), random_labels(1, 5, 12)
    torch.testing.assert_close(
        NCEandAGCELoss(2.0, 3.0, 1.8, 3.0)(logits, target),
        2 * NCELoss()(logits, target) + 3 * AGCELoss(1.8, 3.0)(logits, target),
    )


def test_defaults_are_the_published_ones_for_cifar10():
    assert str(AGCELoss()) == "AGCELoss(a=0.6, q=0.6)"
    assert str(NCEandAGCELoss()) == "NCEandAGCELoss(alpha=1, beta=4, a=6, q=1.5)"


def test_constants_are_positive_numbers():
    for loss, name, value in product(
        (AGCELoss, NCEandAGCELoss), ("a", "q"), (0.0, -1.0, math.nan, math.inf)
    ):
        with pytest.raises(ValueError, match=f"{name} must be a positive number, got {value}"):
            loss(**{name: value})

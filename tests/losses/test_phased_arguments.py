"""Losses in two phases by their names, and what they refuse."""

import pytest
import torch
from torch import nn

from losses.test_phased import EARLY, LABELS, LATE, LOGITS, called, phased
from optuna_robustloss.losses import GCELoss, MAELoss, PhasedLoss, ScaledLoss
from optuna_robustloss.losses.registry import make_loss

# --- By name ---


def test_the_named_pairs_are_those_of_their_formulas():
    p = LOGITS.softmax(-1).gather(1, LABELS[:, None])[:, 0]
    confirm = 0.5 - 0.5 * (p**2).mean()
    sce, ce, mae = (called(make_loss(name, 10)) for name in ("sce", "ce", "mae"))
    pairs = {"sce-then-confirm": (0.08, sce, confirm), "ce-then-mae": (0.04, 0.5 * ce, 0.1 * mae)}
    for name, (switch, early, late) in pairs.items():
        criterion = make_loss(name, 10)
        for progress, expected in [
            (switch, early),
            (switch + 0.02, (early + late) / 2),
            (switch + 0.04, late),
        ]:
            criterion.progress = progress
            torch.testing.assert_close(called(criterion), expected, atol=1e-6, rtol=1e-6)


def test_a_named_pair_is_scaled_and_needs_the_progress():
    scaled = make_loss("ce-then-mae*0.5", 10)
    with pytest.raises(RuntimeError, match="set its progress"):
        called(scaled)
    scaled.criterion.progress = 0.0
    torch.testing.assert_close(called(scaled), 0.25 * called(nn.CrossEntropyLoss()))


# --- Arguments ---


def test_wrong_arguments_are_named():
    for options, message in [
        ({"switch": -0.1}, "switch is a share of the steps from 0 to 1, or 'adaptive', got -0.1"),
        ({"switch": 8}, "switch is a share .* got 8"),
        ({"switch": float("nan")}, "switch is a share .* got nan"),
        ({"width": -0.1}, "width is a share"),
        ({"switch": 0.8, "width": 0.4}, r"would not be over by the end: choose switch \+ width"),
        ({"total_steps": 0}, "total_steps must be at least 1 or None, got 0"),
        ({"late": MAELoss(reduction="sum")}, r"the same reduction, got \('mean', 'sum'\)"),
        ({"late": ScaledLoss(GCELoss(reduction="none"), 2)}, r"got \('mean', 'none'\)"),
        ({"late": ScaledLoss(phased(), 2.0)}, "cannot have phases themselves"),
    ]:
        with pytest.raises(ValueError, match=message):
            phased(**options)


def test_progress_is_a_share():
    for progress in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=f"progress is a share .* got {progress}"):
            phased().progress = progress


def test_a_training_that_is_too_short_is_named():
    for options, message in [
        (
            {"total_steps": 11},
            r"ends at a cumulative learning rate of 0.12, the training at 0.11",
        ),
        ({"lr": 0}, "lr and total_steps must be positive, got 0 and 100"),
        ({"total_steps": -3}, "lr and total_steps must be positive"),
    ]:
        arguments = {"switch": 0.08, "width": 0.04, "lr": 0.01, "total_steps": 100}
        with pytest.raises(ValueError, match=message):
            PhasedLoss.at_cumulative_lr(EARLY, LATE, **(arguments | options))

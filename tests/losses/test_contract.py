"""What every loss shares with ``nn.CrossEntropyLoss``; formulas are tested elsewhere."""

from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from losses.every_loss import (
    CLASSES,
    LINEAR,
    SHAPES,
    WEIGHT,
    WEIGHTED_BY_SAMPLE,
    WITH_PYTORCH,
    every_loss,
    targets,
)
from losses.reference import one_hot, random_labels, random_logits
from optuna_robustloss.losses import (
    BootstrapLoss,
    EpsilonSoftmaxLoss,
    ForwardCorrectionLoss,
    GCELoss,
    LabelSmoothingLoss,
    SCELoss,
    TaylorLoss,
)

# --- Layouts, weights, reduction ---


@pytest.mark.parametrize("loss", WITH_PYTORCH.values(), ids=WITH_PYTORCH)
def test_layouts_and_reductions_are_those_of_cross_entropy(loss):
    """Each sample's loss is that of the sample alone."""
    for shape in SHAPES:
        logits, where = random_logits(0, *shape), min(len(shape) - 1, 1)
        samples = shape[:where] + shape[where + 1 :]
        rows = logits.movedim(where, -1).reshape(-1, CLASSES)
        soft = random_logits(1, *shape).softmax(where)
        for target in (random_labels(1, CLASSES, *samples), soft):
            labels = target.reshape(-1)
            if target is soft:
                labels = target.movedim(where, -1).reshape(-1, CLASSES)
            pairs = zip(rows.split(1), labels.split(1), strict=True)
            alone = torch.stack([loss()(row, label) for row, label in pairs])
            expected = {"none": alone.view(samples), "sum": alone.sum(), "mean": alone.mean()}
            for reduction, value in expected.items():
                found = loss(reduction=reduction)(logits, target)
                assert found.shape == F.cross_entropy(logits, target, reduction=reduction).shape
                torch.testing.assert_close(found, value, msg=f"{shape} {reduction}")


@every_loss
def test_classes_may_come_last(loss):
    logits, target = random_logits(0, 4, 3, CLASSES), random_labels(1, CLASSES, 4, 3)
    criterion = loss(reduction="none")
    torch.testing.assert_close(criterion(logits, target), criterion(logits.movedim(-1, 1), target))


@pytest.mark.parametrize(
    "loss",
    [*WEIGHTED_BY_SAMPLE.values(), nn.CrossEntropyLoss],
    ids=[*WEIGHTED_BY_SAMPLE, "CrossEntropyLoss"],
)
def test_weights_and_ignored_labels_count_as_in_cross_entropy(loss):
    """Mean: Σ w_y·ℓ / Σ w_y over the labels that are not ignored; ignored ones are 0 in none."""
    for weight, ignore_index in product((None, WEIGHT), (-100, 2)):
        logits, target = random_logits(0, 20, CLASSES), random_labels(1, CLASSES, 20)
        target[::3] = ignore_index
        known = target.masked_fill(target == ignore_index, 0)
        counts = (target != ignore_index).double()
        if weight is not None:
            counts = counts * weight[known]
        losses = counts * loss(reduction="none")(logits, known)
        expected = {"none": losses, "sum": losses.sum(), "mean": losses.sum() / counts.sum()}
        for reduction, value in expected.items():
            criterion = loss(reduction=reduction, ignore_index=ignore_index, weight=weight)
            torch.testing.assert_close(criterion(logits, target), value)


@pytest.mark.parametrize("loss", WEIGHTED_BY_SAMPLE.values(), ids=WEIGHTED_BY_SAMPLE)
def test_soft_targets_are_weighted_as_in_cross_entropy(loss):
    """What is linear in y is weighted class by class, the rest by Σ_c w_c·y_c."""
    logits, (_, target) = random_logits(0, 20, CLASSES), targets()
    plain, options = loss(reduction="none"), {"weight": WEIGHT}
    of_class = torch.stack(
        [plain(logits, one_hot(torch.full((20,), c), CLASSES)) for c in range(CLASSES)], dim=-1
    )
    by_class = (of_class * WEIGHT * target).sum(-1)
    by_sample = (target * WEIGHT).sum(-1) * plain(logits, target)
    linear = plain.linear_part(logits, target)
    if loss in LINEAR:
        expected = by_class
    elif linear is None:
        expected = by_sample
    else:
        rest = plain(logits, target) - linear
        of_class = [
            plain.linear_part(logits, one_hot(torch.full((20,), c), CLASSES))
            for c in range(CLASSES)
        ]
        expected = (torch.stack(of_class, dim=-1) * WEIGHT * target).sum(-1) + (
            target * WEIGHT
        ).sum(-1) * rest
    for reduction, value in {
        "none": expected,
        "sum": expected.sum(),
        "mean": expected.mean(),
    }.items():
        torch.testing.assert_close(loss(reduction=reduction, **options)(logits, target), value)


def test_losses_that_are_cross_entropy_weigh_soft_targets_like_it():
    logits, (labels, soft) = random_logits(0, 20, CLASSES), targets()
    zero = [0.0] * 12
    for reduction, target in product(("none", "sum", "mean"), (labels, soft)):
        options = {"reduction": reduction, "weight": WEIGHT}
        for criterion in (
            TaylorLoss(zero, CLASSES, eta=None, cross_entropy_weight=1.0, **options),
            SCELoss(1.0, 0.0, **options),
            BootstrapLoss(1.0, **options),
            ForwardCorrectionLoss(torch.eye(CLASSES).double(), **options),
            EpsilonSoftmaxLoss(1.0, 0.0, 0.0, p_min=0.0, **options),
            LabelSmoothingLoss(0.0, **options),
            GCELoss(1e-9, **options),
        ):
            expected = F.cross_entropy(logits, target, **options)
            torch.testing.assert_close(criterion(logits, target), expected, rtol=1e-6, atol=1e-6)


@every_loss
def test_one_hot_probabilities_are_class_indices(loss):
    logits, target = random_logits(0, 20, CLASSES), random_labels(1, CLASSES, 20)
    criterion = loss(reduction="none")
    torch.testing.assert_close(
        criterion(logits, one_hot(target, CLASSES)), criterion(logits, target)
    )


@every_loss
def test_ignored_samples_have_no_gradient_whatever_their_logits(loss):
    logits = random_logits(0, 3, CLASSES)
    logits[1] = torch.tensor([1e6, -1e6, 0, 0, 0])
    logits.requires_grad_()
    loss()(logits, torch.tensor([0, -100, 1])).backward()
    assert not logits.grad[1].any()
    assert logits.grad[[0, 2]].any(-1).all()


@every_loss
def test_the_mean_over_no_samples_is_nan_and_the_sum_is_zero(loss):
    logits, target = random_logits(0, 3, CLASSES), torch.full((3,), -100)
    assert loss()(logits, target).isnan()
    assert loss(reduction="sum")(logits, target) == 0


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
def test_label_smoothing_is_that_of_pytorch(weight):
    logits, (labels, soft) = random_logits(0, 20, CLASSES), targets()
    labels[::3] = -100
    for target, reduction in product((labels, soft), ("none", "sum", "mean")):
        options = {"weight": weight, "reduction": reduction}
        pytorch = nn.CrossEntropyLoss(label_smoothing=0.3, **options)
        found = LabelSmoothingLoss(0.3, **options)(logits, target)
        torch.testing.assert_close(found, pytorch(logits, target))


# --- State and errors ---


@every_loss
def test_the_state_is_saved_and_loaded(loss):
    saved, loaded = loss(weight=WEIGHT), loss(weight=torch.zeros(CLASSES).double())
    assert "weight" in saved.state_dict()
    loaded.load_state_dict(saved.state_dict())
    logits, target = random_logits(0, 20, CLASSES), random_labels(1, CLASSES, 20)
    torch.testing.assert_close(loaded(logits, target), saved(logits, target))
    assert loaded.float().weight.dtype == torch.float32


@every_loss
def test_errors_name_the_value_and_the_allowed_ones(loss):
    with pytest.raises(ValueError, match=r"'mean', 'sum', 'none'.*got 'average'"):
        loss(reduction="average")
    with pytest.raises(ValueError, match=r"\(3,\) do not fit logits of shape \(4, 5\): .* \(4,\)"):
        loss()(torch.zeros(4, CLASSES), torch.zeros(3).long())
    with pytest.raises(ValueError, match=r"do not fit .* expected \(4, 5\) or \(4, 2\)"):
        loss()(torch.zeros(4, 5, 2), torch.zeros(4).long())
    with pytest.raises(ValueError, match=r"shape of the logits \(4, 5\), got \(4,\)"):
        loss()(torch.zeros(4, CLASSES), torch.zeros(4))
    with pytest.raises(ValueError, match=r"floating point, got torch\.int64"):
        loss()(torch.zeros(4, CLASSES).long(), torch.zeros(4).long())
    with pytest.raises(ValueError, match="must have a class dimension"):
        loss()(torch.tensor(0.0), torch.tensor(0))
    for label in (-1, CLASSES):
        message = f"label {label} is out of range for 5 classes.*0 … 4|Target {label} is out of"
        with pytest.raises(IndexError, match=message):
            loss()(torch.zeros(3, CLASSES), torch.tensor([0, label, 1]))

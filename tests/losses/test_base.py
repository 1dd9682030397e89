"""Shapes, reductions, weights and ``ignore_index``: those of ``F.cross_entropy``."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from losses.reference import eq4_of_logits, random_labels, random_logits, random_theta
from optuna_robustloss.losses import (
    MAE_THETA,
    GCELoss,
    MAELoss,
    SCELoss,
    TaylorLoss,
    taylor_loss,
)

CLASSES = 5

CRITERIA = {
    "CrossEntropy": nn.CrossEntropyLoss,  # PyTorch itself has to pass
    "Taylor": lambda **options: TaylorLoss(random_theta(0), CLASSES, **options),
    "Taylor + CE": lambda **options: TaylorLoss(
        random_theta(0), CLASSES, cross_entropy_weight=0.3, **options
    ),
    "MAE": MAELoss,
    "GCE": GCELoss,
    "SCE": SCELoss,
}

OWN = [name for name in CRITERIA if name != "CrossEntropy"]

every_criterion = pytest.mark.parametrize("criterion", CRITERIA.values(), ids=CRITERIA.keys())

#: Shapes of logits and of class indices that ``nn.CrossEntropyLoss`` takes.
SHAPES = {
    "one sample": ((CLASSES,), ()),
    "batch": ((4, CLASSES), (4,)),
    "sequence": ((4, CLASSES, 3), (4, 3)),
    "segmentation": ((4, CLASSES, 3, 2), (4, 3, 2)),
    "as many samples as classes": ((CLASSES, CLASSES, CLASSES), (CLASSES, CLASSES)),
}

every_shape = pytest.mark.parametrize(
    ("logits_shape", "target_shape"), SHAPES.values(), ids=SHAPES.keys()
)


def class_dimension(shape):
    return 0 if len(shape) == 1 else 1


@every_criterion
@every_shape
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("soft", [False, True], ids=["index", "soft"])
def test_accepts_what_cross_entropy_accepts(criterion, logits_shape, target_shape, reduction, soft):
    """The same shape comes out, and each sample's loss is that of the sample alone."""
    logits = random_logits(0, *logits_shape).requires_grad_()
    where = class_dimension(logits_shape)
    target = random_labels(1, CLASSES, *target_shape)
    if soft:
        target = random_logits(1, *logits_shape).softmax(where)
    loss = criterion(reduction=reduction)(logits, target)
    assert loss.shape == F.cross_entropy(logits, target, reduction=reduction).shape
    rows = logits.movedim(where, -1).reshape(-1, CLASSES)
    labels = target.movedim(where, -1).reshape(-1, CLASSES) if soft else target.reshape(-1)
    alone = torch.stack(
        [criterion()(row[None], label[None]) for row, label in zip(rows, labels, strict=True)]
    )
    expected = {"none": alone.view(target_shape), "sum": alone.sum(), "mean": alone.mean()}
    torch.testing.assert_close(loss, expected[reduction])
    loss.sum().backward()
    assert logits.grad.abs().sum() > 0


@every_criterion
@every_shape
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignore_index", [-100, 2])
def test_weights_and_ignored_labels_count_as_in_cross_entropy(
    criterion, logits_shape, target_shape, reduction, weighted, ignore_index
):
    """Mean: Σ w_y·ℓ / Σ w_y over the labels that are not ignored; ignored ones are 0 in none."""
    logits = random_logits(0, *logits_shape)
    target = random_labels(1, CLASSES, *target_shape)
    if target.ndim:
        target.flatten()[::3] = ignore_index
    weight = torch.tensor([0.5, 1.0, 3.0, 0.0, 2.0], dtype=torch.float64) if weighted else None
    losses = criterion(reduction="none")(logits, target.masked_fill(target == ignore_index, 0))
    counts = (target != ignore_index).double()
    if weighted:
        counts = counts * weight[target.masked_fill(target == ignore_index, 0)]
    expected = {
        "none": counts * losses,
        "sum": (counts * losses).sum(),
        "mean": (counts * losses).sum() / counts.sum(),
    }
    loss = criterion(reduction=reduction, ignore_index=ignore_index, weight=weight)
    torch.testing.assert_close(loss(logits, target), expected[reduction])


@every_criterion
def test_ignored_samples_have_no_gradient_whatever_their_logits(criterion):
    logits = random_logits(0, 3, CLASSES)
    logits[1] = torch.tensor([1e6, -1e6, 0, 0, 0])
    logits.requires_grad_()
    criterion()(logits, torch.tensor([0, -100, 1])).backward()
    assert not logits.grad[1].any()
    assert logits.grad[[0, 2]].all()


@every_criterion
def test_the_mean_over_nothing_is_nan_and_the_sum_is_zero(criterion):
    logits, target = random_logits(0, 3, CLASSES), torch.full((3,), -100)
    assert criterion()(logits, target).isnan()
    assert criterion(reduction="sum")(logits, target) == 0


@pytest.mark.parametrize("name", ["Taylor", "MAE", "GCE", "SCE"])
def test_weights_of_soft_targets_weigh_the_sample(name):
    """A sample weighs Σ_c w_c·y_c, and the mean divides by the number of samples."""
    logits, target = random_logits(0, 6, CLASSES), random_logits(1, 6, CLASSES).softmax(-1)
    weight = torch.tensor([0.5, 1.0, 3.0, 0.0, 2.0], dtype=torch.float64)
    losses = CRITERIA[name](reduction="none")(logits, target)
    expected = ((target * weight).sum(-1) * losses).mean()
    torch.testing.assert_close(CRITERIA[name](weight=weight)(logits, target), expected)


@pytest.mark.parametrize("shape", [(CLASSES,), (4, CLASSES), (2, 3, CLASSES), (2, 3, 4, CLASSES)])
def test_classes_last_is_taken_from_the_shape_of_the_labels(shape):
    logits, target, theta = random_logits(0, *shape), random_labels(1, CLASSES, *shape[:-1]), 4
    theta = random_theta(theta)
    losses = taylor_loss(logits, target, theta, reduction="none")
    torch.testing.assert_close(losses, eq4_of_logits(logits, target, theta))


def test_where_both_layouts_fit_the_order_is_that_of_cross_entropy():
    logits, target, theta = random_logits(0, 2, 3, 3), random_labels(1, 3, 2, 3), random_theta(2)
    losses = taylor_loss(logits, target, theta, reduction="none")
    torch.testing.assert_close(losses, eq4_of_logits(logits.movedim(1, -1), target, theta))


# --- Errors ---


@pytest.mark.parametrize(
    ("logits_shape", "target_shape", "message"),
    [
        ((4, 3), (5,), r"\(5,\) do not fit logits of shape \(4, 3\): expected \(4,\)"),
        ((4, 3, 2), (4,), r"expected \(4, 3\) or \(4, 2\)"),
        ((4, 3), (4, 1), "do not fit"),
        ((), (), "must have a class dimension"),
    ],
)
def test_labels_that_do_not_fit(logits_shape, target_shape, message):
    with pytest.raises(ValueError, match=message):
        taylor_loss(random_logits(0, *logits_shape), random_labels(0, 3, *target_shape), MAE_THETA)


def test_soft_targets_need_the_shape_of_the_logits():
    with pytest.raises(ValueError, match=r"\(4, 3\), got \(4,\)"):
        taylor_loss(torch.zeros(4, 3), torch.zeros(4), MAE_THETA)


def test_integer_logits():
    with pytest.raises(ValueError, match=r"floating point, got torch\.int64"):
        taylor_loss(torch.zeros(4, 3, dtype=torch.long), torch.zeros(4).long(), MAE_THETA)


@pytest.mark.parametrize(
    ("logits_shape", "target_shape", "message"),
    [
        ((4, 6, 3), (6,), r"\(K, N, C\) with the same K, got \(4, 6, 3\)"),
        ((6, 3), (6,), r"got \(6, 3\)"),
        ((2, 6, 3), (5,), r"\(2, 6\) or \(6,\), got \(5,\)"),
    ],
)
def test_a_population_that_does_not_fit(logits_shape, target_shape, message):
    thetas = random_theta(0, population=2)
    with pytest.raises(ValueError, match=message):
        taylor_loss(random_logits(0, *logits_shape), random_labels(0, 3, *target_shape), thetas)


own_criterion = pytest.mark.parametrize("criterion", [CRITERIA[name] for name in OWN], ids=OWN)


@own_criterion
@pytest.mark.parametrize("label", [-1, CLASSES])
def test_a_label_out_of_range_is_named_with_the_range(criterion, label):
    logits, target = torch.zeros(3, CLASSES), torch.tensor([0, label, 1])
    message = f"label {label} is out of range for 5 classes.*0 … 4"
    with pytest.raises(IndexError, match=message):
        criterion()(logits, target)
    with pytest.raises(IndexError, match=message):
        taylor_loss(logits, target, MAE_THETA)


@own_criterion
def test_an_unknown_reduction_is_refused_with_the_known_ones(criterion):
    message = r"'mean', 'sum', 'none'.*got 'average'"
    with pytest.raises(ValueError, match=message):
        criterion(reduction="average")
    with pytest.raises(ValueError, match=message):
        taylor_loss(torch.zeros(1, 3), torch.tensor([0]), MAE_THETA, reduction="average")

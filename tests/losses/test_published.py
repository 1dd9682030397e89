"""Published robust losses as drop-ins for ``nn.CrossEntropyLoss``; formulas are in other files."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from losses.reference import one_hot, random_labels, random_logits
from optuna_robustloss.losses import (
    AGCELoss,
    ANLCELoss,
    BootstrapLoss,
    ELRLoss,
    EpsilonSoftmaxLoss,
    ForwardCorrectionLoss,
    LabelSmoothingLoss,
    NCEandAGCELoss,
    NCEandMAELoss,
    NCEandRCELoss,
    NCELoss,
)

CLASSES = 5
TRANSITION = random_logits(9, CLASSES, CLASSES).softmax(-1)
WEIGHT = torch.tensor([0.5, 1.0, 3.0, 0.0, 2.0], dtype=torch.float64)


def elr(**options):
    return ELRLoss(8, CLASSES, **options).eval()  # without indices: shapes and weights only


LOSSES = {
    "bootstrap-soft": BootstrapLoss,
    "bootstrap-hard": lambda **options: BootstrapLoss(hard=True, **options),
    "forward correction": lambda **options: ForwardCorrectionLoss(TRANSITION, **options),
    "NCE": NCELoss,
    "NCE+MAE": NCEandMAELoss,
    "NCE+RCE": NCEandRCELoss,
    "AGCE": AGCELoss,
    "NCE+AGCE": NCEandAGCELoss,
    "ANL-CE": ANLCELoss,
    "ε-softmax": lambda **options: EpsilonSoftmaxLoss(alpha=0.5, m=3.0, **options),
    "ELR": elr,
}
ALL = LOSSES | {"label smoothing": LabelSmoothingLoss}

every_loss = pytest.mark.parametrize("loss", ALL.values(), ids=ALL.keys())
weighted_by_sample = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
index_and_soft = pytest.mark.parametrize("soft", [False, True], ids=["index", "soft"])


# --- Shapes, weights, reduction ---


@every_loss
@index_and_soft
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("shape", [(CLASSES,), (4, CLASSES), (4, CLASSES, 3), (4, CLASSES, 3, 2)])
def test_accepts_what_cross_entropy_accepts(loss, shape, reduction, soft):
    """The same shape comes out, and each sample's loss is that of the sample alone."""
    logits, where = random_logits(0, *shape), 0 if len(shape) == 1 else 1
    labels_shape = shape[:where] + shape[where + 1 :]
    target = random_labels(1, CLASSES, *labels_shape)
    if soft:
        target = random_logits(1, *shape).softmax(where)
    value = loss(reduction=reduction)(logits, target)
    assert value.shape == F.cross_entropy(logits, target, reduction=reduction).shape
    rows = logits.movedim(where, -1).reshape(-1, CLASSES)
    labels = target.movedim(where, -1).reshape(-1, CLASSES) if soft else target.reshape(-1)
    alone = torch.stack(
        [loss()(row[None], label[None]) for row, label in zip(rows, labels, strict=True)]
    )
    expected = {"none": alone.view(labels_shape), "sum": alone.sum(), "mean": alone.mean()}
    torch.testing.assert_close(value, expected[reduction])


@every_loss
def test_classes_may_come_last(loss):
    logits, target = random_logits(0, 4, 3, CLASSES), random_labels(1, CLASSES, 4, 3)
    torch.testing.assert_close(
        loss(reduction="none")(logits, target),
        loss(reduction="none")(logits.movedim(-1, 1), target),
    )


@weighted_by_sample
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
@pytest.mark.parametrize("ignore_index", [-100, 2])
def test_weights_and_ignored_labels_count_as_in_cross_entropy(loss, weight, ignore_index):
    """Mean: Σ w_y·ℓ / Σ w_y over the labels that are not ignored; ignored ones are 0 in none."""
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


@weighted_by_sample
def test_a_soft_target_weighs_the_sample_by_its_classes(loss):
    logits, target = random_logits(0, 6, CLASSES), random_logits(1, 6, CLASSES).softmax(-1)
    expected = ((target * WEIGHT).sum(-1) * loss(reduction="none")(logits, target)).mean()
    torch.testing.assert_close(loss(weight=WEIGHT)(logits, target), expected)


@every_loss
def test_one_hot_probabilities_are_class_indices(loss):
    logits, target = random_logits(0, 20, CLASSES), random_labels(1, CLASSES, 20)
    torch.testing.assert_close(
        loss(reduction="none")(logits, one_hot(target, CLASSES)),
        loss(reduction="none")(logits, target),
    )


@every_loss
def test_ignored_samples_have_no_gradient_whatever_their_logits(loss):
    logits = random_logits(0, 3, CLASSES)
    logits[1] = torch.tensor([1e6, -1e6, 0, 0, 0])
    logits.requires_grad_()
    loss()(logits, torch.tensor([0, -100, 1])).backward()
    assert not logits.grad[1].any()
    assert logits.grad[[0, 2]].any(-1).all()


# --- Gradients ---


@every_loss
@index_and_soft
def test_first_and_second_derivatives(loss, soft):
    logits = random_logits(0, 2, CLASSES).requires_grad_()
    target = random_logits(1, 2, CLASSES).softmax(-1) if soft else random_labels(1, CLASSES, 2)
    assert torch.autograd.gradcheck(lambda z: loss()(z, target), (logits,))
    assert torch.autograd.gradgradcheck(lambda z: loss()(z, target), (logits,))


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@index_and_soft
def test_extreme_logits_have_finite_values_and_gradients(loss, dtype, soft):
    extreme = [[3e4, 0, -3e4, 1, 2], [-3e4, 0, 3e4, 1, 2], [3e4, 3e4, 0, 0, 0], [0] * CLASSES]
    logits = torch.tensor(extreme, dtype=dtype, requires_grad=True)
    target = torch.tensor([0, 0, 2, 1])
    value = loss(reduction="sum")(logits, one_hot(target, CLASSES).to(dtype) if soft else target)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert logits.grad.isfinite().all()


@every_loss
def test_half_precision_is_computed_in_float32(loss):
    logits, target = random_logits(0, 30, CLASSES).bfloat16(), random_labels(1, CLASSES, 30)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss()(logits, target)
    torch.testing.assert_close(value, loss()(logits.float(), target))


# --- State and arguments ---


@every_loss
def test_the_state_is_saved_and_loaded(loss):
    saved = loss(weight=WEIGHT)
    loaded = loss(weight=torch.zeros(CLASSES).double())
    assert "weight" in saved.state_dict()
    loaded.load_state_dict(saved.state_dict())
    logits, target = random_logits(0, 20, CLASSES), random_labels(1, CLASSES, 20)
    torch.testing.assert_close(loaded(logits, target), saved(logits, target))
    assert loaded.float().weight.dtype == torch.float32


@every_loss
def test_an_unknown_reduction_is_refused_with_the_known_ones(loss):
    with pytest.raises(ValueError, match=r"'mean', 'sum', 'none'.*got 'average'"):
        loss(reduction="average")


@every_loss
@pytest.mark.parametrize("label", [-1, CLASSES])
def test_a_label_out_of_range_is_named(loss, label):
    message = f"label {label} is out of range|Target {label} is out of bounds"
    with pytest.raises(IndexError, match=message):
        loss()(torch.zeros(3, CLASSES), torch.tensor([0, label, 1]))


@every_loss
def test_targets_that_do_not_fit(loss):
    with pytest.raises(ValueError, match="do not fit logits"):
        loss()(torch.zeros(4, CLASSES), torch.zeros(3).long())
    with pytest.raises(ValueError, match="need the shape of the logits"):
        loss()(torch.zeros(4, CLASSES), torch.zeros(4))


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@index_and_soft
def test_label_smoothing_is_that_of_pytorch(weight, reduction, soft):
    logits, target = random_logits(0, 20, CLASSES), random_labels(1, CLASSES, 20)
    target[::3] = -100
    target = random_logits(1, 20, CLASSES).softmax(-1) if soft else target
    options = {"weight": weight, "reduction": reduction}
    pytorch = nn.CrossEntropyLoss(label_smoothing=0.3, **options)
    torch.testing.assert_close(
        LabelSmoothingLoss(0.3, **options)(logits, target), pytorch(logits, target)
    )

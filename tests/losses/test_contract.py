"""What every loss shares with ``nn.CrossEntropyLoss``; formulas are tested elsewhere."""

from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from losses.reference import one_hot, random_labels, random_logits, random_theta
from optuna_robustloss.losses import (
    AGCELoss,
    ANLCELoss,
    BootstrapLoss,
    ELRLoss,
    EpsilonSoftmaxLoss,
    ForwardCorrectionLoss,
    GCELoss,
    LabelSmoothingLoss,
    MAELoss,
    NCEandAGCELoss,
    NCEandMAELoss,
    NCEandRCELoss,
    NCELoss,
    SCELoss,
    TaylorLoss,
)

CLASSES = 5
TRANSITION = random_logits(9, CLASSES, CLASSES).softmax(-1)
WEIGHT = torch.tensor([0.5, 1.0, 3.0, 0.0, 2.0], dtype=torch.float64)


def taylor(**options):
    return TaylorLoss(random_theta(0), CLASSES, **options)


def elr(**options):
    return ELRLoss(8, CLASSES, **options).eval()  # needs no indices then


#: Losses whose class weights weigh the samples.
WEIGHTED_BY_SAMPLE = {
    "Taylor": taylor,
    "Taylor + CE": lambda **options: taylor(cross_entropy_weight=0.3, **options),
    "Taylor, log": lambda **options: taylor(variable="log", **options),
    "MAE": MAELoss,
    "GCE": GCELoss,
    "SCE": SCELoss,
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
OWN = WEIGHTED_BY_SAMPLE | {"label smoothing": LabelSmoothingLoss}
WITH_PYTORCH = OWN | {"CrossEntropyLoss": nn.CrossEntropyLoss}  # which has to pass, too

every_loss = pytest.mark.parametrize("loss", OWN.values(), ids=OWN)
SHAPES = [
    (CLASSES,),
    (4, CLASSES),
    (4, CLASSES, 3),
    (4, CLASSES, 3, 2),
    (CLASSES, CLASSES, CLASSES),  # as many samples as classes
]


def targets(num_samples=20):
    """Class indices and class probabilities for the same logits ``(N, C)``."""
    soft = random_logits(1, num_samples, CLASSES).softmax(-1)
    return random_labels(1, CLASSES, num_samples), soft


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
def test_a_soft_target_weighs_the_sample_by_its_classes(loss):
    logits, (_, target) = random_logits(0, 20, CLASSES), targets()
    expected = ((target * WEIGHT).sum(-1) * loss(reduction="none")(logits, target)).mean()
    torch.testing.assert_close(loss(weight=WEIGHT)(logits, target), expected)


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


# --- Derivatives and precision ---


@every_loss
def test_first_and_second_derivatives(loss):
    logits = random_logits(0, 2, CLASSES).requires_grad_()
    for target in targets(2):
        assert torch.autograd.gradcheck(lambda z, t=target: loss()(z, t), (logits,))
        assert torch.autograd.gradgradcheck(lambda z, t=target: loss()(z, t), (logits,))


@every_loss
def test_extreme_logits_have_finite_values_and_gradients(loss):
    extreme = [[3e4, 0, -3e4, 1, 2], [-3e4, 0, 3e4, 1, 2], [3e4, 3e4, 0, 0, 0], [0] * CLASSES]
    labels = torch.tensor([0, 0, 2, 1])
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for target in (labels, one_hot(labels, CLASSES).to(dtype)):
            logits = torch.tensor(extreme, dtype=dtype, requires_grad=True)
            value = loss(reduction="sum")(logits, target)
            value.backward()
            assert value.dtype == torch.float32
            assert value.isfinite()
            assert logits.grad.isfinite().all()


@every_loss
def test_half_precision_is_computed_in_float32(loss):
    logits, target = random_logits(0, 30, CLASSES).bfloat16(), random_labels(1, CLASSES, 30)
    criterion = loss().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = criterion(logits, target)
    torch.testing.assert_close(value, criterion(logits.float(), target))


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

"""Dtypes and derivatives that every loss shares with ``nn.CrossEntropyLoss``."""

import pytest
import torch
from torch import func
from torch.autograd import forward_ad

from losses.every_loss import CLASSES, WEIGHT, every_loss, targets
from losses.reference import one_hot, random_labels, random_logits
from optuna_robustloss.losses import (
    ANLCELoss,
    LabelSmoothingLoss,
    NCEandAGCELoss,
    NCEandMAELoss,
    NCEandRCELoss,
    NCELoss,
)

# --- Dtypes ---


@every_loss
def test_labels_of_every_integer_dtype(loss):
    """``nn.CrossEntropyLoss`` takes int64 and uint8, with the same values."""
    logits, labels = random_logits(0, 20, CLASSES), random_labels(1, CLASSES, 20)
    expected = loss()(logits, labels)
    for name in ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32"):
        assert torch.equal(loss()(logits, labels.to(getattr(torch, name))), expected), name
    ignored = torch.where(torch.arange(20) < 5, 255, labels)
    criterion = loss(ignore_index=255)
    assert torch.equal(criterion(logits, ignored.to(torch.uint8)), criterion(logits, ignored))


@every_loss
def test_soft_labels_of_every_float_dtype_keep_the_dtype_of_the_logits(loss):
    _, soft = targets()
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        rounded = soft.to(dtype)
        for logits in (random_logits(0, 20, CLASSES), random_logits(0, 20, CLASSES).float()):
            value = loss(weight=WEIGHT)(logits, rounded)
            assert value.dtype == logits.dtype
            expected = loss(weight=WEIGHT)(logits, rounded.to(logits.dtype))
            torch.testing.assert_close(value, expected)


@every_loss
def test_other_dtypes_are_refused_by_name(loss):
    logits = random_logits(0, 2, CLASSES)
    for wrong in (torch.bool, torch.complex64):
        with pytest.raises(ValueError, match=rf"uint8.*int64\) or .*float16.*, got {wrong}"):
            loss()(logits, torch.ones(2).to(wrong))
    with pytest.raises(ValueError, match=r"floating point, got torch\.complex128"):
        loss()(logits.to(torch.complex128), torch.tensor([0, 1]))


@every_loss
def test_float64_in_float64_out(loss):
    criterion, logits = loss(), random_logits(0, 4, CLASSES).requires_grad_()
    for target in targets(4):
        value = criterion(logits, target)
        (gradient,) = torch.autograd.grad(value, logits)
        assert value.dtype == gradient.dtype == torch.float64
        assert criterion(logits.float(), target).dtype == torch.float32


# --- Derivatives and precision ---


@every_loss
def test_first_and_second_derivatives(loss):
    logits = random_logits(0, 2, CLASSES).requires_grad_()
    for target in targets(2):
        assert torch.autograd.gradcheck(lambda z, t=target: loss()(z, t), (logits,))
        assert torch.autograd.gradgradcheck(lambda z, t=target: loss()(z, t), (logits,))


@every_loss
def test_function_transforms_and_forward_mode(loss):
    criterion, logits = loss(), random_logits(0, 2, CLASSES)
    for target in targets(2):

        def function(z, target=target):
            return criterion(z, target)

        leaf = logits.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(criterion(leaf, target), leaf)
        torch.testing.assert_close(func.grad(function)(logits), gradient)
        torch.testing.assert_close(func.jacfwd(function)(logits), gradient)
        along = func.jvp(function, (logits,), (torch.ones_like(logits),))[1]
        torch.testing.assert_close(along, gradient.sum())
        with forward_ad.dual_level():
            value = function(forward_ad.make_dual(logits, torch.ones_like(logits)))
            torch.testing.assert_close(forward_ad.unpack_dual(value).tangent, gradient.sum())
        mapped = func.vmap(func.grad(criterion))(logits.unsqueeze(1), target.unsqueeze(1))
        torch.testing.assert_close(mapped.squeeze(1) / 2, gradient)
        slow = torch.autograd.functional.hessian(function, logits)
        for second in (func.hessian, lambda f: func.jacfwd(func.jacfwd(f))):
            torch.testing.assert_close(second(function)(logits), slow)


@every_loss
def test_a_class_masked_by_minus_infinity(loss):
    """Value and derivatives are finite, but where label smoothing gives the class a share."""
    logits = random_logits(0, 6, CLASSES)
    logits[:, 4] = -torch.inf
    logits.requires_grad_()
    labels = random_labels(1, 4, 6)
    for target in (labels, one_hot(labels, CLASSES), 0.3 + 0.4 * one_hot(labels, CLASSES)):
        if target.ndim > 1:
            target[:, 4] = 0
        for dtype in (torch.float64, torch.float32, torch.float16):
            value = loss()(logits.to(dtype), target)
            if loss is LabelSmoothingLoss:
                assert not value.isfinite()
                continue
            (first,) = torch.autograd.grad(value, logits, create_graph=True)
            (second,) = torch.autograd.grad((first**2).sum(), logits)
            assert value.isfinite()
            assert first.isfinite().all()
            assert second.isfinite().all()
            assert not first[:, 4].any()


def test_normalised_losses_leave_out_masked_classes():
    logits, target = random_logits(0, 6, CLASSES), random_labels(1, CLASSES, 6)
    masked = torch.cat([logits, torch.full((6, 2), -torch.inf)], dim=1)
    for criterion in (NCELoss(), NCEandMAELoss(), NCEandRCELoss(), NCEandAGCELoss(), ANLCELoss()):
        torch.testing.assert_close(criterion(masked, target), criterion(logits, target))


@pytest.mark.slow
@every_loss
def test_compiled_without_graph_breaks(loss):
    torch.compiler.reset()
    criterion = loss(weight=WEIGHT)
    compiled = torch.compile(criterion, fullgraph=True)
    for target in targets():
        logits = random_logits(0, 20, CLASSES).requires_grad_()
        value, expected = compiled(logits, target), criterion(logits, target)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(
            torch.autograd.grad(value, logits), torch.autograd.grad(expected, logits)
        )


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

"""Early-learning regularisation: the moving averages step by step, and the loss they enter."""

import math

import pytest
import torch
from torch.nn import functional as F

from losses.reference import random_labels, random_logits
from optuna_robustloss.losses import ELRLoss

SAMPLES, CLASSES, BETA, LAM = 7, 4, 0.7, 3.0


def make(**options):
    return ELRLoss(SAMPLES, CLASSES, **{"beta": BETA, "lam": LAM} | options).double()


def kept(row):
    """Probabilities kept in [10⁻⁴, 1 − 10⁻⁴]."""
    return [min(max(p, 1e-4), 1 - 1e-4) for p in torch.softmax(row, -1).tolist()]


def test_three_steps_are_those_of_the_formula():
    """t ← β t + (1 − β) ŷ, then CE + λ log(1 − ⟨t, ŷ⟩), for the samples of each batch only."""
    loss = make(reduction="none")
    t = [[0.0] * CLASSES for _ in range(SAMPLES)]
    for step, index in enumerate([[0, 3, 5], [3, 1, 0], [3, 6, 2]]):
        logits, target = 4 * random_logits(step, 3, CLASSES), random_labels(step, CLASSES, 3)
        expected = []
        for row, label, i in zip(logits, target.tolist(), index, strict=True):
            p = kept(row)
            t[i] = [BETA * old + (1 - BETA) * pk / sum(p) for old, pk in zip(t[i], p, strict=True)]
            inner = sum(a * b for a, b in zip(t[i], p, strict=True))
            ce = -math.log(torch.softmax(row, -1)[label].item())
            expected.append(ce + LAM * math.log(1 - inner))
        losses = loss(logits, target, torch.tensor(index))
        torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64))
        torch.testing.assert_close(loss.average, torch.tensor(t, dtype=torch.float64))


@pytest.mark.parametrize("soft", [False, True])
def test_derivatives_with_averages_as_constants(soft):
    loss = make()
    index = torch.tensor([2, 5])
    loss(random_logits(0, 2, CLASSES), random_labels(1, CLASSES, 2), index)
    loss.eval()
    target = random_logits(1, 2, CLASSES).softmax(-1) if soft else random_labels(1, CLASSES, 2)
    logits = random_logits(2, 2, CLASSES).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, target, index), (logits,))


def test_the_update_itself_has_no_gradient():
    """The first step's slope is that of λ log(1 − ⟨c, ŷ⟩) at the constant c = (1 − β) ŷ."""
    logits, target = random_logits(0, 2, CLASSES), random_labels(1, CLASSES, 2)
    slopes = []
    for constant in (False, True):
        z = logits.clone().requires_grad_()
        if constant:
            c = (1 - BETA) * logits.softmax(-1)
            term = LAM * torch.log(1 - (c * z.softmax(-1)).sum(-1)).mean()
            value = F.cross_entropy(z, target) + term
        else:
            value = make()(z, target, torch.tensor([0, 1]))
        slopes.append(torch.autograd.grad(value, z)[0])
    torch.testing.assert_close(*slopes)


def test_evaluation_reads_the_averages_only():
    loss = make()
    logits, target = random_logits(0, 2, CLASSES), random_labels(1, CLASSES, 2)
    index = torch.tensor([2, 5])
    loss(logits, target, index)
    before = loss.average.clone()
    loss.eval()
    inner = (before[index] * logits.softmax(-1)).sum(-1)
    expected = F.cross_entropy(logits, target) + LAM * torch.log(1 - inner).mean()
    torch.testing.assert_close(loss(logits, target, index), expected)
    torch.testing.assert_close(loss(logits, target), F.cross_entropy(logits, target))
    assert torch.equal(loss.average, before)


def test_ignored_samples_do_not_count_but_are_remembered():
    loss = make(reduction="none")
    logits, target = random_logits(0, 2, CLASSES), torch.tensor([-100, 1])
    losses = loss(logits, target, torch.tensor([2, 5]))
    assert losses[0] == 0
    assert losses[1] != 0
    torch.testing.assert_close(loss.average[2], (1 - BETA) * logits[0].softmax(-1))


def test_without_lambda_it_is_cross_entropy():
    logits, target = random_logits(0, 2, CLASSES), random_labels(1, CLASSES, 2)
    value = make(lam=0.0)(logits, target, torch.tensor([0, 1]))
    torch.testing.assert_close(value, F.cross_entropy(logits, target))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_extreme_logits_have_finite_values_and_gradients(dtype):
    loss = ELRLoss(2, 3, beta=0.0)
    logits = torch.tensor([[3e4, 0, -3e4], [-3e4, 0, 3e4]], dtype=dtype, requires_grad=True)
    for _ in range(3):
        value = loss(logits, torch.tensor([0, 0]), torch.tensor([0, 1]))
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert logits.grad.isfinite().all()


def test_the_averages_are_part_of_the_state():
    saved, loaded = make(), make()
    logits, target = random_logits(0, 2, CLASSES), random_labels(1, CLASSES, 2)
    saved(logits, target, torch.tensor([2, 5]))
    loaded.load_state_dict(saved.state_dict())
    assert torch.equal(loaded.average, saved.average)
    assert loaded.average[5].any()


# --- Arguments ---


def test_the_loss_says_that_it_takes_indices():
    assert ELRLoss.takes_index is True


def test_training_needs_indices():
    with pytest.raises(TypeError, match=r"needs index \(N,\).*in training"):
        make()(torch.zeros(2, CLASSES), torch.tensor([0, 1]))


def test_indices_that_do_not_fit():
    for index in (torch.tensor([0]), torch.tensor([[0], [1]]), torch.tensor([0.0, 1.0])):
        with pytest.raises(ValueError, match=r"index must be int64 of shape \(2,\)"):
            make()(torch.zeros(2, CLASSES), torch.tensor([0, 1]), index)


def test_logits_that_do_not_fit():
    for shape in ((2, 3), (2, CLASSES, 5)):
        target = torch.zeros(shape[:1] + shape[2:]).long()
        with pytest.raises(ValueError, match=r"needs logits \(N, 4\)"):
            make()(torch.zeros(shape), target, torch.tensor([0, 1]))


def test_constants_out_of_range():
    for options, message in [
        ({"beta": 1.0}, r"beta must be in \[0, 1\), got 1.0"),
        ({"beta": -0.1}, r"beta must be in \[0, 1\)"),
        ({"lam": -1.0}, "lam must be a number ≥ 0, got -1.0"),
        ({"lam": math.nan}, "lam must be a number ≥ 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            make(**options)


def test_sizes_out_of_range():
    for sizes in ((0, 4), (5, 1)):
        with pytest.raises(ValueError, match="num_samples ≥ 1 and num_classes ≥ 2"):
            ELRLoss(*sizes)

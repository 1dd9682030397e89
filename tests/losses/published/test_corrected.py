"""Cross-entropy with corrected labels, against the formulas as printed, in Python loops."""

import math

import pytest
import torch
from torch.nn import functional as F

from losses.reference import one_hot, random_labels, random_logits
from optuna_robustloss.losses import BootstrapLoss, ForwardCorrectionLoss, LabelSmoothingLoss


@pytest.fixture(params=[2, 10, 100], ids=lambda c: f"C={c}")
def batch(request):
    """Logits, probabilities, labels as indices, one-hot and soft ones."""
    classes = request.param
    logits, target = random_logits(0, 12, classes), random_labels(1, classes, 12)
    soft = random_logits(2, 12, classes).softmax(-1)
    return logits, logits.softmax(-1), target, one_hot(target, classes), soft


def of_each(formula, probabilities, labels):
    """``formula(p, y)`` of Python lists, for each sample."""
    pairs = zip(probabilities.tolist(), labels.tolist(), strict=True)
    return torch.tensor([formula(p, y) for p, y in pairs], dtype=torch.float64)


def check(loss, batch, formula):
    logits, p, target, y, soft = batch
    torch.testing.assert_close(loss(logits, target), of_each(formula, p, y))
    torch.testing.assert_close(loss(logits, soft), of_each(formula, p, soft))


# --- Bootstrapping ---


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.95, 1.0])
def test_soft_bootstrapping_mixes_label_and_prediction(batch, beta):
    def formula(p, y):
        return -sum(
            (beta * yk + (1 - beta) * pk) * math.log(pk) for pk, yk in zip(p, y, strict=True)
        )

    check(BootstrapLoss(beta, reduction="none"), batch, formula)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.8, 1.0])
def test_hard_bootstrapping_mixes_label_and_predicted_class(batch, beta):
    def formula(p, y):
        z = [float(k == p.index(max(p))) for k in range(len(p))]
        return -sum(
            (beta * yk + (1 - beta) * zk) * math.log(pk) for pk, yk, zk in zip(p, y, z, strict=True)
        )

    check(BootstrapLoss(beta, hard=True, reduction="none"), batch, formula)


def test_bootstrapping_defaults_are_the_published_ones():
    assert (BootstrapLoss().beta, BootstrapLoss(hard=True).beta) == (0.95, 0.8)
    assert str(BootstrapLoss(hard=True)) == "BootstrapLoss(beta=0.8, hard=True)"


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan])
def test_beta_is_a_share(hard, beta):
    with pytest.raises(ValueError, match=rf"beta must be in \[0, 1\], got {beta}"):
        BootstrapLoss(beta, hard=hard)


# --- Label smoothing ---


@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
def test_label_smoothing_spreads_a_share_of_the_label(batch, alpha):
    def formula(p, y):
        return -sum(
            ((1 - alpha) * yk + alpha / len(p)) * math.log(pk) for pk, yk in zip(p, y, strict=True)
        )

    check(LabelSmoothingLoss(alpha, reduction="none"), batch, formula)


def test_label_smoothing_of_a_tenth_is_the_default():
    assert LabelSmoothingLoss().alpha == 0.1
    assert str(LabelSmoothingLoss()) == "LabelSmoothingLoss(alpha=0.1)"


def test_alpha_is_a_share():
    for alpha in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=rf"alpha must be in \[0, 1\], got {alpha}"):
            LabelSmoothingLoss(alpha)


# --- Forward correction ---


def random_transition(classes):
    return random_logits(5, classes, classes).softmax(-1)


def test_forward_correction_passes_the_prediction_through_the_noise(batch):
    classes = batch[0].shape[-1]
    T = random_transition(classes).tolist()

    def formula(p, y):
        noisy = [sum(T[i][t] * p[i] for i in range(classes)) for t in range(classes)]
        return -sum(yt * math.log(nt) for yt, nt in zip(y, noisy, strict=True))

    check(ForwardCorrectionLoss(random_transition(classes), reduction="none"), batch, formula)


def test_without_noise_forward_correction_is_cross_entropy(batch):
    logits, _, target, _, soft = batch
    loss = ForwardCorrectionLoss(torch.eye(logits.shape[-1]).long())
    for labels in (target, soft):
        torch.testing.assert_close(loss(logits, labels), F.cross_entropy(logits, labels))


def test_the_expected_gradient_under_noise_vanishes_at_the_clean_posterior():
    """What forward correction is for: the minimiser with noisy labels is that without noise."""
    T, posterior = random_transition(4), random_logits(3, 4).softmax(-1)
    logits = posterior.log().requires_grad_()
    noisy_labels = posterior @ T
    ForwardCorrectionLoss(T)(logits, noisy_labels).backward()
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), atol=1e-12, rtol=0)


def test_the_transition_matrix_is_part_of_the_state_and_moves_with_the_module():
    loss = ForwardCorrectionLoss(random_transition(3))
    other = ForwardCorrectionLoss(torch.eye(3, dtype=torch.float64))
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other.transition, random_transition(3))
    assert loss.float().transition.dtype == torch.float32


def test_the_given_matrix_is_copied():
    matrix = random_transition(3)
    loss = ForwardCorrectionLoss(matrix)
    matrix.zero_()
    assert torch.equal(loss.transition, random_transition(3))


def test_what_is_no_transition_matrix():
    for matrix, message in [
        ([[1.0, 0.0]], r"must be \(C, C\), got \(1, 2\)"),
        ([1.0], r"must be \(C, C\), got \(1,\)"),
        ([[1.1, -0.1], [0.0, 1.0]], "entries ≥ 0"),
        ([[1.0, 0.0], [math.nan, 1.0]], "entries ≥ 0"),
        ([[1.0, 0.0], [0.2, 0.7]], "row 1 has 0.9"),
        ([[0.0, 1.0], [0.0, 1.0]], "column 0 of transition is zero"),
    ]:
        with pytest.raises(ValueError, match=message):
            ForwardCorrectionLoss(torch.tensor(matrix))


def test_logits_of_another_number_of_classes():
    for soft in (False, True):
        target = torch.zeros(2, 4) if soft else torch.zeros(2).long()
        with pytest.raises(ValueError, match="have 4 classes, the transition matrix has 3"):
            ForwardCorrectionLoss(torch.eye(3))(torch.zeros(2, 4), target)

"""Losses that change in the course of a training: when, into what, and how they are resumed."""

import copy
import math

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from losses.reference import random_labels, random_logits
from optuna_robustloss.losses import (
    CONFIRM_THETA,
    MAE_THETA,
    ELRLoss,
    GCELoss,
    MAELoss,
    PhasedLoss,
    ScaledLoss,
    SCELoss,
    TaylorLoss,
)
from optuna_robustloss.losses.closed_form import late_share

LOGITS, LABELS = random_logits(0, 20, 10), random_labels(1, 10, 20)
EARLY, LATE = SCELoss(), MAELoss()


def phased(early=EARLY, late=LATE, *, switch=0.2, width=0.4, total_steps=10, **options):
    return PhasedLoss(early, late, switch=switch, width=width, total_steps=total_steps, **options)


def called(criterion):
    return criterion(LOGITS, LABELS)


def blended(weight, early=EARLY, late=LATE):
    return (1 - weight) * called(early) + weight * called(late)


class Counted(nn.Module):
    """Cross-entropy that counts its calls."""

    reduction = "mean"

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, logits, target):
        self.calls += 1
        return nn.functional.cross_entropy(logits, target)


# --- When it changes ---


def test_the_weight_grows_linearly_from_the_switch_on():
    criterion = phased()
    weights = [0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1]
    for step, weight in enumerate(weights):
        torch.testing.assert_close(called(criterion), blended(weight), msg=f"step {step}")
    assert int(criterion.steps) == 10


@pytest.mark.parametrize("total", [25, 50, 75, 100, 448, 3150])
@pytest.mark.parametrize(("switch", "width"), [(0.08, 0.04), (0.04, 0.04), (0.16, 0.12)])
def test_whole_shares_are_exact(total, switch, width):
    """8/100 is where a switch of .08 begins, 12/100 where it is over: no rounding in between."""
    for step in range(total):
        weight = late_share(step / total, switch, width)
        exact = (100 * step - round(100 * switch) * total) / (round(100 * width) * total)
        assert weight == pytest.approx(min(max(exact, 0), 1), abs=1e-8)
        assert (weight == 0) is (exact <= 0)
        assert (weight == 1) is (exact >= 1)


def test_without_a_width_it_changes_at_once():
    for switch, early_steps in ((0, 0), (0.3, 3), (0.31, 4), (1, 10)):
        criterion = phased(switch=switch, width=0)
        for step in range(10):
            assert torch.equal(called(criterion), called(EARLY if step < early_steps else LATE))


def test_after_the_last_step_it_stays_late():
    criterion = phased(total_steps=2)
    values = [called(criterion) for _ in range(5)]
    assert torch.equal(values[-1], called(LATE))


def test_only_what_counts_is_computed():
    early, late = Counted(), Counted()
    criterion = phased(early, late)
    calls = []
    for _ in range(10):
        called(criterion)
        calls.append((early.calls, late.calls))
    assert calls[2] == (3, 0)
    assert calls[5] == (6, 3)
    assert calls[9] == (6, 7)


def test_steps_times_learning_rate_are_the_same_moment_in_a_longer_training():
    for lr in (0.01, 0.1):
        for total in (100, 300):
            criterion = PhasedLoss.at_cumulative_lr(
                EARLY, LATE, switch=8 * lr, width=4 * lr, lr=lr, total_steps=total
            )
            found = [called(criterion) for _ in range(14)]
            expected = [blended(min(max((step - 8) / 4, 0), 1)) for step in range(14)]
            torch.testing.assert_close(found, expected)


# --- Where it is ---


def test_a_state_dict_resumes_where_it_was(tmp_path):
    criterion = phased()
    first = [called(criterion) for _ in range(4)]
    torch.save(criterion.state_dict(), tmp_path / "state.pt")
    rest = [called(criterion) for _ in range(6)]
    resumed = phased()
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(torch.stack([called(resumed) for _ in range(6)]), torch.stack(rest))
    assert not torch.equal(torch.stack(first), torch.stack(rest[:4]))


def test_a_copy_counts_for_itself():
    criterion = phased()
    called(criterion)
    twin = copy.deepcopy(criterion)
    called(twin)
    assert (int(criterion.steps), int(twin.steps)) == (1, 2)


def test_the_count_is_an_integer_on_the_device_of_the_module():
    """NCCL broadcasts buffers of its own device only."""
    for move in (nn.Module.half, nn.Module.double, lambda c: c.to(torch.bfloat16)):
        criterion = phased()
        called(criterion)
        criterion = move(criterion)
        called(criterion)
        assert criterion.steps.dtype == torch.int64
        assert criterion.state_dict()["steps"].item() == 2
    assert phased().to("meta").steps.device.type == "meta"


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_calls_without_gradients_are_not_counted(mode):
    """Evaluation in training mode is no step: it gives the loss of the moment."""
    criterion = phased()
    for _ in range(4):
        called(criterion)
    with mode():
        values = [called(criterion) for _ in range(3)]
    torch.testing.assert_close(values, [blended(0.5)] * 3)
    assert int(criterion.steps) == 4
    torch.testing.assert_close(called(criterion), blended(0.5))


@pytest.mark.parametrize("early", [EARLY, TaylorLoss(MAE_THETA, 10, cross_entropy_weight=0.1)])
def test_one_compiled_graph_counts_and_switches(early):
    torch._dynamo.reset()
    graphs = CompileCounter()
    criterion, eager = phased(early), phased(early)
    compiled = torch.compile(criterion, fullgraph=True, backend=graphs)
    logits = LOGITS.clone().requires_grad_()
    for step in range(11):
        found, expected = compiled(logits, LABELS), eager(logits, LABELS)
        torch.testing.assert_close(found, expected, msg=f"step {step}")
        gradients = [torch.autograd.grad(value, logits)[0] for value in (found, expected)]
        torch.testing.assert_close(*gradients)
        assert criterion.l1 == 0
    assert int(criterion.steps) == 11
    assert graphs.frame_count == 1
    for progress in (0.0, 0.3, 0.45, 1.0):
        criterion.progress = eager.progress = progress
        torch.testing.assert_close(compiled(logits, LABELS), eager(logits, LABELS))
    assert graphs.frame_count == 2  # one that counts, and one that is told


def test_a_compiled_part_that_weighs_nothing_may_be_infinite():
    torch._dynamo.reset()
    criterion = phased(nn.CrossEntropyLoss(), MAELoss(), width=0)
    compiled = torch.compile(criterion, fullgraph=True, backend="eager")
    masked = LOGITS.scatter(1, LABELS[:, None], -math.inf)
    values = [compiled(masked, LABELS).item() for _ in range(3)]
    assert values == [math.inf, math.inf, 2.0]


def test_a_progress_that_is_set_replaces_the_count():
    criterion = phased(total_steps=None)
    assert criterion.progress is None
    for progress, weight in [(0.4, 0.5), (0.0, 0), (0.2, 0), (0.3, 0.25), (0.6, 1), (1, 1)]:
        criterion.progress = progress
        torch.testing.assert_close(called(criterion), blended(weight))
    assert int(criterion.steps) == 0


def test_without_progress_it_goes_on_counting():
    criterion = phased()
    called(criterion)
    criterion.progress = 1.0
    assert torch.equal(called(criterion), called(LATE))
    criterion.progress = None
    assert torch.equal(called(criterion), called(EARLY))
    assert int(criterion.steps) == 2


@pytest.mark.parametrize("progress", [None, 0.0])
def test_in_evaluation_it_is_the_late_loss_and_does_not_count(progress):
    criterion = phased().eval()
    criterion.progress = progress
    assert torch.equal(called(criterion), called(LATE))
    criterion.train()
    assert torch.equal(called(criterion), called(EARLY))
    unknown = phased(total_steps=None).eval()
    assert torch.equal(called(unknown), called(LATE))


def test_without_total_steps_or_progress_the_error_says_what_to_set():
    with pytest.raises(RuntimeError, match="build it with total_steps, or set its progress"):
        called(phased(total_steps=None))


# --- As a loss ---


def test_gradients_of_a_blend_are_those_of_its_formula():
    early = TaylorLoss(torch.tensor(MAE_THETA).double(), 4, cross_entropy_weight=0.1)
    late = TaylorLoss(torch.tensor(CONFIRM_THETA).double(), 4)
    logits = random_logits(2, 5, 4).requires_grad_()
    criterion = phased(early, late)
    for progress in (0.0, 0.3, 1.0):
        criterion.progress = progress
        assert torch.autograd.gradcheck(lambda z: criterion(z, random_labels(3, 4, 5)), logits)
        assert torch.autograd.gradgradcheck(lambda z: criterion(z, random_labels(3, 4, 5)), logits)


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_the_reduction_is_that_of_the_parts(reduction):
    early, late = GCELoss(reduction=reduction), ScaledLoss(MAELoss(reduction=reduction), 0.5)
    criterion = phased(early, late)
    criterion.progress = 0.3
    assert criterion.reduction == reduction
    torch.testing.assert_close(called(criterion), blended(0.25, early, late))
    assert called(criterion).shape == ((20,) if reduction == "none" else ())


def test_soft_labels_and_pixels_reach_the_parts():
    criterion = phased()
    criterion.progress = 0.3
    soft = random_logits(4, 20, 10).softmax(-1)
    expected = 0.75 * EARLY(LOGITS, soft) + 0.25 * LATE(LOGITS, soft)
    torch.testing.assert_close(criterion(LOGITS, soft), expected)
    pixels, labels = random_logits(5, 2, 10, 3, 3), random_labels(6, 10, 2, 3, 3)
    expected = 0.75 * EARLY(pixels, labels) + 0.25 * LATE(pixels, labels)
    torch.testing.assert_close(criterion(pixels, labels), expected)


def test_attributes_of_the_parts_for_the_training_loop_are_passed_on():
    memory = ELRLoss(num_samples=20, num_classes=10)
    criterion = ScaledLoss(phased(memory, MAELoss()), 2.0)
    assert criterion.takes_index
    criterion(LOGITS.float(), LABELS, torch.arange(20))
    assert memory.average.any()
    assert not phased().takes_index

    sparse = MAELoss()
    sparse.l1 = 4.0
    criterion = ScaledLoss(phased(sparse, GCELoss()), 2.0)
    found = []
    for progress in (0.0, 0.3, 1.0):
        criterion.criterion.progress = progress
        called(criterion)
        found.append(criterion.l1)
    assert found == [8.0, 6.0, 0.0]

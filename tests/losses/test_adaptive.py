"""Losses whose switch reads the batches: the rule step by step, its state, and what it needs."""

import copy
import math

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from losses.reference import random_labels, random_logits
from optuna_robustloss.losses import (
    CONFIRM_THETA,
    MAELoss,
    PhasedLoss,
    ScaledLoss,
    SCELoss,
    TaylorLoss,
    load_loss,
    make_loss,
    save_loss,
)
from optuna_robustloss.losses.adaptive import read_batch

CLASSES, SAMPLES, STEPS, LR = 5, 400, 60, 0.1
LABELS = random_labels(1, CLASSES, SAMPLES)
WITH_LR = {"after": 2.0, "guard": 0.05, "lr": LR}
WITHOUT = {"guard": 0.3}
BOTH = pytest.mark.parametrize("options", [WITH_LR, WITHOUT], ids=["after", "without lr"])


def adaptive(early=None, late=None, **options):
    """Averages over two steps, so that a stream of 60 is long."""
    options = {"averaging": 0.5} | options
    return PhasedLoss(early or SCELoss(), late or MAELoss(), switch="adaptive", **options)


def stream(steps=STEPS):
    """Logits that get more confident up to step 20, and give more of the labels from there on."""
    for step in range(steps):
        noise = random_logits(step, SAMPLES, CLASSES) * min(0.5 + 0.15 * step, 3.5)
        yield noise + 0.4 * max(step - 20, 0) * nn.functional.one_hot(LABELS, CLASSES)


def weight_of(criterion, logits, target=LABELS):
    """The weight of the late loss, from the value of the blend."""
    early, late = criterion.early(logits, target), criterion.late(logits, target)
    return ((criterion(logits, target) - early) / (late - early)).item()


def reference(batches, *, guard, after=None, averaging=0.5, width=0.5, lr=0.0):
    """The rule in plain numbers: weights of each step, from agreements and confidences."""
    agreement = confidence = 0.0
    lowest, lowest_at, started, weights = math.inf, 0, None, []
    for step, (a, c) in enumerate(batches, start=1):
        agreement = averaging * agreement + (1 - averaging) * a
        confidence = averaging * confidence + (1 - averaging) * c
        ratio, done = agreement / confidence, lr * (step - 1)
        if step >= 3 / (1 - averaging):
            if ratio < lowest:
                lowest, lowest_at = ratio, step
            if after is None:
                ready = step >= 1.3 * lowest_at and ratio >= (1 + guard) * lowest
            else:
                ready = done >= after - 1e-6 and ratio >= lowest + guard
            if started is None and ready:
                started = step if after is None else done
        if started is None:
            weights.append(0.0)
            continue
        length = width * (started if after is None else after)
        since = (step if after is None else done) - started
        weights.append(min(since / length, 1.0) if length else 1.0)
    return weights


def agreements_and_confidences():
    for logits in stream():
        p = logits.softmax(-1)
        right = [row.argmax().item() == y for row, y in zip(p, LABELS.tolist(), strict=True)]
        yield sum(right) / SAMPLES, sum(row.max().item() for row in p) / SAMPLES


# --- The rule ---


@BOTH
@pytest.mark.parametrize("width", [0.5, 0.0])
def test_weights_are_those_of_the_rule_in_plain_numbers(options, width):
    criterion = adaptive(width=width, **options)
    found = [weight_of(criterion, logits) for logits in stream()]
    expected = reference(agreements_and_confidences(), width=width, **options)
    assert found == pytest.approx(expected, abs=1e-4)
    assert 20 < expected.index(next(w for w in expected if w)) < 40
    assert expected[-1] == 1
    assert any(0 < w < 1 for w in expected) is (width > 0)
    assert int(criterion.steps) == STEPS


def test_before_after_and_without_a_rise_it_does_not_start():
    late = adaptive(after=LR * STEPS, guard=0.05, lr=LR)
    assert all(weight_of(late, logits) == 0 for logits in stream())
    high = adaptive(after=0.0, guard=3.0, lr=LR)
    assert all(weight_of(high, logits) == 0 for logits in stream())


@BOTH
def test_early_chatter_does_not_pass_for_the_minimum(options):
    """A batch at the start without any agreement is not yet in the averages that count."""
    criterion, usual = adaptive(**options), adaptive(**options)
    wrong = -20.0 * nn.functional.one_hot(LABELS, CLASSES).double()
    for step, logits in enumerate(stream(20)):
        criterion(wrong if step < 2 else logits, LABELS)
        usual(logits, LABELS)
    assert weight_of(criterion, logits) == 0
    assert criterion.state.lowest.item() == pytest.approx(usual.state.lowest.item(), abs=0.02)


def test_cumulative_learning_rates_that_are_set_replace_steps_times_lr():
    """With a schedule a plain loop sets them; here its rates are half of the usual ones."""
    usual, told = adaptive(**WITH_LR), adaptive(after=1.0, guard=0.05)
    for step, logits in enumerate(stream()):
        told.cumulative_lr = 0.5 * LR * step
        assert weight_of(told, logits) == pytest.approx(weight_of(usual, logits), abs=1e-4)
    assert told.cumulative_lr == pytest.approx(0.5 * LR * (STEPS - 1))


def test_a_batch_is_read_by_its_samples_that_count():
    logits = random_logits(0, 6, CLASSES)
    labels = torch.tensor([-100, *random_labels(1, CLASSES, 5).tolist()])
    p = logits.softmax(-1)[1:]
    right = (p.argmax(-1) == labels[1:]).sum().item()
    expected = torch.tensor([right, p.amax(-1).sum().item(), 5], dtype=torch.float64)
    torch.testing.assert_close(read_batch(logits, labels), expected)
    soft = logits.roll(1, 0).softmax(-1)
    by_argmax = sum(y[z.argmax()].item() for z, y in zip(logits, soft, strict=True))
    assert read_batch(logits, soft)[0].item() == pytest.approx(by_argmax)


def test_pixels_and_ignored_labels_reach_the_averages():
    pixels = random_logits(0, 2, CLASSES, 3, 3)
    labels = random_labels(1, CLASSES, 2, 3, 3)
    rows = pixels.movedim(1, -1).reshape(-1, CLASSES)
    part = adaptive(late=ScaledLoss(MAELoss(ignore_index=0), 2.0), **WITHOUT)
    part(pixels, labels)
    counted = labels.flatten() != 0
    expected = adaptive(**WITHOUT)
    expected(rows[counted], labels.flatten()[counted])
    torch.testing.assert_close(part.state.averages, expected.state.averages)
    before = part.state.averages.clone()
    part(pixels, torch.zeros_like(labels))  # nothing counts
    assert torch.equal(part.state.averages, before)


# --- Its state ---


@BOTH
def test_a_checkpoint_resumes_in_the_middle_of_the_change(options, tmp_path):
    criterion, batches = adaptive(**options), list(stream())
    weights = reference(agreements_and_confidences(), **options)
    middle = next(step for step, weight in enumerate(weights) if weight > 0) + 1
    for logits in batches[:middle]:
        criterion(logits, LABELS)
    torch.save(criterion.state_dict(), tmp_path / "state.pt")
    rest = [weight_of(criterion, logits) for logits in batches[middle:]]
    resumed = adaptive(**options)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [weight_of(resumed, logits) for logits in batches[middle:]] == rest
    assert rest == pytest.approx(weights[middle:], abs=1e-4)


def test_evaluation_changes_nothing():
    criterion = adaptive(**WITH_LR)
    for logits in stream(30):
        criterion(logits, LABELS)
    before = copy.deepcopy(criterion.state_dict())
    with torch.no_grad():
        criterion(random_logits(7, SAMPLES, CLASSES), LABELS)
    criterion.eval()
    value = criterion(logits, LABELS)
    assert torch.equal(value, criterion.late(logits, LABELS))
    assert all(torch.equal(before[name], now) for name, now in criterion.state_dict().items())


def test_the_state_stays_in_single_precision_and_is_reset():
    criterion = adaptive(**WITHOUT)
    for logits in stream(10):
        criterion(logits, LABELS)
    averages = criterion.state.averages.clone()
    for move in (nn.Module.half, nn.Module.double):
        criterion = move(criterion)
        assert torch.equal(criterion.state.averages, averages)
        assert criterion.state.averages.dtype == torch.float32
    assert copy.deepcopy(criterion).to("meta").state.averages.device.type == "meta"
    for module in criterion.modules():
        if hasattr(module, "reset"):
            module.reset()
    fresh = adaptive(**WITHOUT).state_dict()
    assert all(torch.equal(fresh[name], now) for name, now in criterion.state_dict().items())


@BOTH
def test_one_compiled_graph_reads_and_switches(options):
    torch._dynamo.reset()
    graphs = CompileCounter()
    criterion, eager = adaptive(**options), adaptive(**options)
    compiled = torch.compile(criterion, fullgraph=True, backend=graphs)
    for logits in stream():
        torch.testing.assert_close(compiled(logits, LABELS), eager(logits, LABELS))
    assert graphs.frame_count == 1
    assert criterion.state.weight.item() == 1


# --- By name, by file, by argument ---


def test_the_shipped_pair_is_that_of_its_formula(tmp_path):
    logits, labels = random_logits(0, 20, 10), random_labels(1, 10, 20)
    criterion = load_loss("adaptive-sce-confirm", 10, lr=0.01)
    assert (criterion.after, criterion.guard, criterion.averaging) == (2.0, 0.02, 0.98)
    assert (criterion.width, criterion.lr) == (0.5, 0.01)
    p = logits.softmax(-1).gather(1, labels[:, None])
    expected = 0.1 * nn.functional.cross_entropy(logits, labels) + 4 * (1 - p.mean())
    torch.testing.assert_close(criterion(logits, labels), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(criterion.eval()(logits, labels), 0.5 - 0.5 * p.square().mean())
    save_loss(criterion, tmp_path / "mine.json")
    again = load_loss(tmp_path / "mine.json", after=None, lr=None, guard=0.06)
    assert (again.switch, again.after, again.guard, again.late.theta) == (
        *("adaptive", None, 0.06),
        CONFIRM_THETA,
    )
    assert isinstance(make_loss("adaptive-sce-confirm*0.5", 7).criterion.early, TaylorLoss)


def test_without_the_learning_rate_the_error_says_what_to_give():
    criterion = load_loss("adaptive-sce-confirm", CLASSES)
    with pytest.raises(RuntimeError, match=r"needs the learning rate.*lr=.*after=None"):
        criterion(next(stream()), LABELS)
    criterion.cumulative_lr = 0.0
    assert criterion(next(stream()), LABELS).isfinite()


def test_wrong_arguments_are_named():
    for options, message in [
        ({"after": -1.0}, "after must be a number ≥ 0, got -1.0"),
        ({"guard": math.nan}, "guard must be a number ≥ 0, got nan"),
        ({"width": -0.5}, "width must be a number ≥ 0"),
        ({"averaging": 1.0}, r"averaging must be in \[0, 1\), got 1.0"),
        ({"after": 2.0, "lr": 0.0}, "lr is a positive number beside after, got 0.0"),
        ({"lr": 0.1}, "lr is a positive number beside after, got 0.1, after None"),
        ({"total_steps": 100}, "does not use total_steps"),
    ]:
        with pytest.raises(ValueError, match=message):
            adaptive(**options)
    with pytest.raises(ValueError, match='are for switch="adaptive"'):
        PhasedLoss(SCELoss(), MAELoss(), switch=0.1, lr=0.1)
    with pytest.raises(ValueError, match="no progress: set cumulative_lr"):
        adaptive().progress = 0.5
    with pytest.raises(ValueError, match="cumulative_lr must be a number ≥ 0, or None, got -1"):
        adaptive(after=1.0).cumulative_lr = -1

"""The gradients of several losses at once against autograd, one loss after another."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from optuna_robustloss.losses import (
    MAE_THETA,
    MSE_THETA,
    GCELoss,
    MAELoss,
    ScaledLoss,
    TaylorLoss,
)
from optuna_robustloss.training.gradients import (
    AutogradGradients,
    ClosedFormGradients,
    is_closed_form,
    loss_gradients,
)
from training.tiny import CPU

CLASSES = 7


def taylor(theta=MAE_THETA, eta=10.0, **options):
    return TaylorLoss(theta, CLASSES, eta=eta, **options)


def random_theta(seed):
    return torch.randn(12, generator=torch.Generator().manual_seed(seed))


def many(**options):
    """Taylor losses of all kinds."""
    plain = [taylor(random_theta(seed), **options) for seed in range(3)]
    more = taylor(MSE_THETA, eta=None, **options)
    nested = ScaledLoss(ScaledLoss(taylor(random_theta(3), **options), 0.5), 3.0)
    return [*plain, more, nested]


def logits(count, samples=5, dtype=torch.float32, scale=2.0):
    generator = torch.Generator().manual_seed(1)
    return (scale * torch.randn(count, samples, CLASSES, generator=generator)).to(dtype)


def labels(samples=5):
    return torch.randint(CLASSES, (samples,), generator=torch.Generator().manual_seed(2))


def gradients_of(criteria):
    return loss_gradients(criteria, CLASSES, CPU, without_autograd=is_closed_form(criteria))


def by_autograd(criteria, values, target):
    """The slow reference."""
    rows = []
    for criterion, row in zip(criteria, values, strict=True):
        leaf = row.clone().requires_grad_()
        criterion(leaf, target).backward()
        rows.append(leaf.grad)
    return torch.stack(rows)


KINDS = {
    "probability": many,
    "log": lambda: many(variable="log"),
    "with cross-entropy": lambda: many(cross_entropy_weight=0.3),
    "some with cross-entropy": lambda: [taylor(), *many(cross_entropy_weight=0.3)],
    "log with cross-entropy": lambda: many(variable="log", cross_entropy_weight=2.0),
    "any": lambda: [nn.CrossEntropyLoss(), MAELoss(), GCELoss(), taylor()],
}


@pytest.mark.parametrize("criteria", [make() for make in KINDS.values()], ids=KINDS)
@pytest.mark.parametrize("scale", [0.0, 2.0, 50.0])
def test_gradients_are_those_of_autograd(criteria, scale):
    gradients, values = gradients_of(criteria), logits(len(criteria), scale=scale)
    found, finite = gradients(values, labels())
    expected = by_autograd(criteria, values, labels())
    assert found.shape == values.shape
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    assert finite.tolist() == [True] * len(criteria)
    assert is_closed_form(criteria) is isinstance(gradients, ClosedFormGradients)


@pytest.mark.parametrize("kind", ["probability", "log with cross-entropy", "any"])
def test_after_half_precision_the_losses_are_computed_in_single(kind):
    criteria = KINDS[kind]()
    values = logits(len(criteria), dtype=torch.bfloat16)
    found, _ = gradients_of(criteria)(values, labels())
    expected = by_autograd(criteria, values.float(), labels())
    torch.testing.assert_close(found, expected.to(found.dtype), atol=1e-6, rtol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_kept_in_the_given_order(kind):
    criteria = KINDS[kind]()
    gradients, values = gradients_of(criteria), logits(len(criteria))
    everything, _ = gradients(values, labels())
    gradients.keep([3, 0])
    kept, finite = gradients(values[[3, 0]], labels())
    assert torch.equal(kept, everything[[3, 0]])
    assert finite.shape == (2,)


@pytest.mark.parametrize("kind", ["probability", "log with cross-entropy", "any"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_stay_with_their_candidate(kind, bad):
    criteria = KINDS[kind]()
    gradients, values = gradients_of(criteria), logits(len(criteria))
    clean, _ = gradients(values, labels())
    values[1, 2, 3] = bad
    found, finite = gradients(values, labels())
    assert not finite[1]
    others = [0, *range(2, len(criteria))]
    assert finite[others].all()
    assert torch.equal(found[others], clean[others])


# Which losses have a closed form


class Subclass(TaylorLoss):
    """Who knows what it computes."""


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (taylor(), True),
        (ScaledLoss(taylor(), 2.0), True),
        (taylor(ignore_index=-1), True),
        (taylor(ignore_index=0), False),
        (taylor(weight=torch.ones(CLASSES)), False),
        (taylor(reduction="sum"), False),
        (taylor(variable="log"), False),  # the other is not
        (Subclass(MAE_THETA, CLASSES), False),
        (ScaledLoss(Subclass(MAE_THETA, CLASSES), 2.0), False),
        (ScaledLoss(nn.CrossEntropyLoss(), 2.0), False),
        (nn.CrossEntropyLoss(), False),
    ],
    ids=lambda value: "" if isinstance(value, bool) else type(value).__name__,
)
def test_only_plain_taylor_losses_of_one_variable_have_a_closed_form(other, expected):
    assert is_closed_form([taylor(), other]) is expected
    criteria = [taylor(), other]
    found, _ = gradients_of(criteria)(logits(2), labels())
    torch.testing.assert_close(
        found, by_autograd(criteria, logits(2), labels()), atol=1e-6, rtol=1e-4
    )


def test_a_loss_of_the_log_variable_alone_has_a_closed_form():
    assert is_closed_form([taylor(variable="log"), taylor(variable="log")])


@pytest.mark.parametrize("criterion", [taylor(), ScaledLoss(taylor(), 0.5)])
@pytest.mark.parametrize("closed_form", [True, False])
def test_a_loss_for_another_number_of_classes_is_an_error(criterion, closed_form):
    with pytest.raises(ValueError, match="built for 7 classes, the task has 10"):
        loss_gradients([criterion], 10, CPU, without_autograd=closed_form)


def test_making_gradients_leaves_the_losses_as_they_are():
    criteria = many()
    before = copy.deepcopy([c.state_dict() for c in criteria])
    gradients_of(criteria)(logits(len(criteria)), labels())
    assert str(before) == str([c.state_dict() for c in criteria])


# Losses that depend on the progress


class Following(nn.Module):
    def __init__(self):
        super().__init__()
        self.progress = 0.0

    def forward(self, values, target):
        return self.progress * F.cross_entropy(values, target)


def test_progress_is_set_on_losses_with_the_attribute():
    criteria = [Following(), nn.CrossEntropyLoss(), Following()]
    gradients = gradients_of(criteria)
    assert isinstance(gradients, AutogradGradients)
    for progress in (0.25, 0.5):
        gradients.set_progress(progress, 0.0)
        found, _ = gradients(logits(3), labels())
        whole = by_autograd([nn.CrossEntropyLoss()] * 3, logits(3), labels())
        shares = torch.tensor([progress, 1.0, progress]).view(3, 1, 1)
        torch.testing.assert_close(found, shares * whole)
    gradients.keep([1, 2])
    gradients.set_progress(1.0, 0.0)
    assert [c.progress for c in criteria if isinstance(c, Following)] == [0.5, 1.0]


def test_taylor_losses_have_no_progress():
    gradients = gradients_of([taylor()])
    before, _ = gradients(logits(1), labels())
    gradients.set_progress(0.5, 0.0)
    assert torch.equal(gradients(logits(1), labels())[0], before)


def test_no_graph_is_left_behind():
    for criteria in ([taylor()], [nn.CrossEntropyLoss()]):
        values = logits(1).requires_grad_()
        found, finite = gradients_of(criteria)(values.detach(), labels())
        assert not found.requires_grad
        assert not finite.requires_grad
        assert values.grad is None

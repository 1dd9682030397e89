"""Losses with an adaptive switch in a population: one state each, as alone and in a plain loop."""

import pytest
import torch
from torch import nn

from optuna_robustloss.losses import (
    CONFIRM_THETA,
    MAE_THETA,
    MAELoss,
    PhasedLoss,
    ScaledLoss,
    SCELoss,
    TaylorLoss,
    load_loss,
)
from optuna_robustloss.seeds import derive_seed
from optuna_robustloss.tasks.models import build_model
from optuna_robustloss.tasks.recipes import build_optimizer
from optuna_robustloss.training.gradients import (
    AutogradGradients,
    ClosedFormGradients,
    loss_gradients,
    progress_modules,
)
from optuna_robustloss.training.scoring import score_losses
from training.tiny import ADAM, CPU, SGD, alike, alone, digits, taylor, together, weights

pytestmark = pytest.mark.integration  # trains networks

CLASSES, SAMPLES, STEPS, LR = 10, 200, 50, 0.1
LABELS = torch.randint(CLASSES, (SAMPLES,), generator=torch.Generator().manual_seed(1))
QUICK = {"switch": "adaptive", "averaging": 0.5}


def sce(alpha=0.1):
    return taylor(MAE_THETA, 4.0, cross_entropy_weight=alpha)


def confirm():
    return TaylorLoss(CONFIRM_THETA, CLASSES, eta=0.5)


def closed():
    """Four that change at different moments, and two others."""
    return [
        PhasedLoss(sce(), confirm(), after=2.0, guard=0.05, **QUICK),
        taylor(),
        ScaledLoss(PhasedLoss(sce(0.2), confirm(), guard=0.3, **QUICK), 0.5),
        PhasedLoss(sce(), confirm(), after=3.2, guard=0.0, width=0.1, **QUICK),
        PhasedLoss(sce(), confirm(), switch=0.5, width=0.25),
        PhasedLoss(sce(), confirm(), after=1.0, guard=9.0, **QUICK),
    ]


def others():
    return [
        PhasedLoss(SCELoss(), MAELoss(), after=0.3, guard=0.0, **QUICK),
        ScaledLoss(PhasedLoss(SCELoss(), confirm(), guard=0.01, **QUICK), 2.0),
    ]


def stream(count):
    """Logits of networks that get more confident, and then give more of the labels."""
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        noise = torch.randn(count, SAMPLES, CLASSES, generator=generator)
        fitted = 0.4 * max(step - 20, 0) * nn.functional.one_hot(LABELS, CLASSES)
        yield noise * min(0.5 + 0.15 * step, 3.5) + fitted


@pytest.mark.parametrize("kept", [None, [3, 0, 2, 4]])
def test_closed_gradients_are_those_of_autograd_through_the_change(kept):
    by_form, by_autograd = (
        loss_gradients(closed(), CLASSES, CPU, without_autograd=closed_form)
        for closed_form in (True, False)
    )
    assert isinstance(by_form, ClosedFormGradients)
    assert isinstance(by_autograd, AutogradGradients)
    for step, logits in enumerate(stream(6)):
        if kept and step == 28:
            by_form.keep(kept)
            by_autograd.keep(kept)
        if kept and step >= 28:
            logits = logits[kept]
        for gradients in (by_form, by_autograd):
            gradients.set_progress(step / STEPS, LR * step)
        found, expected = (gradients(logits, LABELS)[0] for gradients in (by_form, by_autograd))
        torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-5, msg=f"step {step}")
    shares = by_form._shares.tolist()
    assert shares == ([1, 0, 1, 1, 1, 0] if kept is None else [1, 1, 1, 1])


def test_state_is_changed_in_place():
    """A recorded CUDA graph reads it there, and what recording changed is put back."""
    gradients = loss_gradients(closed(), CLASSES, CPU, without_autograd=True)
    before = [(tensor.data_ptr(), tensor.clone()) for tensor in gradients.state()]
    for step, logits in zip(range(30), stream(6), strict=False):
        gradients.set_progress(0.0, LR * step)
        gradients(logits, LABELS)
    assert [tensor.data_ptr() for tensor in gradients.state()] == [place for place, _ in before]
    for tensor, (_, value) in zip(gradients.state(), before, strict=True):
        tensor.copy_(value)
    again = loss_gradients(closed(), CLASSES, CPU, without_autograd=True)
    for step, logits in zip(range(30), stream(6), strict=False):
        for one in (gradients, again):
            one.set_progress(0.0, LR * step)
        assert torch.equal(gradients(logits, LABELS)[0], again(logits, LABELS)[0])


@pytest.mark.parametrize("make", [closed, others])
@pytest.mark.parametrize("recipe", [SGD, ADAM], ids=["sgd", "adam"])
def test_a_population_trains_as_each_does_alone(make, recipe):
    task = digits(**recipe)
    runs, apart = (train(task, make(), evaluate_at=[4, 8]) for train in (together, alone))
    for run, own in zip(runs, apart, strict=True):
        assert run.curve == own.curve
        alike(run, own, 1e-5)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_plain_loop_comes_to_the_same(schedule):
    """With a constant rate it gives ``lr`` once, with a schedule it hands over the sum."""
    task = digits(**SGD, epochs=4, schedule=schedule)
    recipe = task.spec.recipe
    lr = recipe.lr if schedule == "constant" else None
    options = QUICK | {"after": 0.35, "guard": 0.0, "width": 0.3}
    run, plain = together(task, [PhasedLoss(sce(), confirm(), **options), sce()])
    theirs = PhasedLoss(SCELoss(), confirm(), lr=lr, **options)
    torch.manual_seed(derive_seed(5, "init"))
    model = build_model("mlp2", num_classes=CLASSES, image_shape=(1, 8, 8))
    optimizer = build_optimizer(recipe, model.parameters())
    order = torch.Generator().manual_seed(derive_seed(5, "order"))
    cumulative_lr, step = 0.0, 0
    for _ in range(4):
        shuffled = task.train.index[torch.randperm(100, generator=order)]
        for index, images in task.train.images.batches(shuffled, 32, device=CPU):
            if lr is None:
                optimizer.param_groups[0]["lr"] = recipe.lr_at(step / 16)
                theirs.cumulative_lr = cumulative_lr
            optimizer.zero_grad()
            theirs(model(images), task.train.labels[index]).backward()
            optimizer.step()
            cumulative_lr += recipe.lr_at(step / 16)
            step += 1
    assert 0 < theirs.state.weight.item() <= 1
    for mine, own in zip(weights(run), model.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, own, atol=1e-5, rtol=1e-4)
    with pytest.raises(AssertionError):
        alike(run, plain, 1e-5)


def test_horizons_are_read_off_one_run():
    """The switch does not know the length of the training."""
    assert progress_modules(closed()[0]) == []
    steps = []
    score_losses(
        [digits(**SGD)],
        [lambda classes: closed()[0]],
        seed=5,
        horizons=(1, 2),
        stop_at_chance_after=None,
        device=CPU,
        reports=[lambda step, accuracy: steps.append(step)],
    )
    assert steps[-1] == 2 * 12


@pytest.mark.slow
def test_on_noisy_digits_it_switches_before_the_labels_are_memorised():
    """After the network has learned, and early enough to end above the early loss alone."""
    task = digits("digits,mlp2,symmetric:0.6", train=1000, batch_size=64, epochs=60, lr=0.03)
    names = {"after": 2.0, "guard": 0.02}
    losses = [
        load_loss("adaptive-sce-confirm", CLASSES),
        PhasedLoss(SCELoss(), confirm(), switch="adaptive"),
        SCELoss(),
    ]
    assert (losses[0].after, losses[0].guard) == tuple(names.values())
    runs = together(task, losses, evaluate_at=[16 * epoch for epoch in range(60)])
    best = max(range(60), key=lambda i: runs[2].curve[i].accuracy)
    for loss, run in zip(losses[:2], runs[:2], strict=True):
        assert loss.state.weight.item() == 1
        assert run.curve[-1].accuracy > runs[2].curve[-1].accuracy + 0.05, (
            best,
            loss.state.started,
        )

"""Losses with phases in a population: the same as alone, and as in a plain loop that counts."""

import copy

import pytest
import torch
from torch import nn

from optuna_robustloss.losses import (
    CONFIRM_THETA,
    MAE_THETA,
    MSE_THETA,
    GCELoss,
    MAELoss,
    PhasedLoss,
    ScaledLoss,
    SCELoss,
    TaylorLoss,
)
from optuna_robustloss.losses.registry import make_loss
from optuna_robustloss.seeds import derive_seed
from optuna_robustloss.tasks.models import build_model
from optuna_robustloss.tasks.recipes import build_optimizer
from optuna_robustloss.training.gradients import (
    AutogradGradients,
    ClosedFormGradients,
    is_closed_form,
    loss_gradients,
)
from optuna_robustloss.training.scoring import score_losses
from training.test_gradients import by_autograd, labels, logits
from training.tiny import ADAM, CPU, SGD, alike, alone, bitwise, digits, same, together, weights

pytestmark = pytest.mark.integration  # trains networks

TEN, SEVEN = 10, 7
STEPS = 12  # of the trainings


def taylor(theta=MAE_THETA, classes=TEN, eta=10.0, **options):
    return TaylorLoss(theta, classes, eta=eta, **options)


def phased(early, late, switch=0.25, width=0.25, **options):
    return PhasedLoss(early, late, switch=switch, width=width, **options)


def closed(classes=TEN, **options):
    """Losses with two phases, scaled within and without, and others with one."""
    sce, mae, mse, confirm = (
        taylor(MAE_THETA, classes, 4.0, cross_entropy_weight=0.1, **options),
        taylor(MAE_THETA, classes, 2.0, **options),
        taylor(MSE_THETA, classes, 8.0, **options),
        taylor(CONFIRM_THETA, classes, 5.0, **options),
    )
    return [
        phased(sce, confirm),
        mae,
        phased(ScaledLoss(mse, 0.5), ScaledLoss(sce, 3.0), switch=0.5, width=0.0),
        ScaledLoss(phased(mae, mse, switch=0.0, width=1.0), 0.5),
        ScaledLoss(mse, 2.0),
    ]


def others():
    return [phased(SCELoss(), MAELoss()), ScaledLoss(phased(GCELoss(), taylor()), 2.0), SCELoss()]


def set_progress(criteria, progress):
    for criterion in criteria:
        for module in criterion.modules():
            if isinstance(module, PhasedLoss):
                module.progress = progress


# --- The gradients in closed form ---

KINDS = {
    "probability": lambda: closed(SEVEN),
    "log": lambda: closed(SEVEN, variable="log"),
    "reversed": lambda: closed(SEVEN)[::-1],
}


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_autograd_at_every_moment(kind):
    criteria = KINDS[kind]()
    gradients = loss_gradients(criteria, SEVEN, CPU, without_autograd=is_closed_form(criteria))
    assert isinstance(gradients, ClosedFormGradients)
    values = logits(len(criteria))
    for progress in (0.0, 0.1, 0.3, 0.45, 0.5, 0.9, 0.2, 1.0):
        gradients.set_progress(progress, 0.0)
        set_progress(criteria, progress)
        found, finite = gradients(values, labels())
        expected = by_autograd(criteria, values, labels())
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
        assert finite.all()


def test_kept_losses_keep_their_own_phases():
    criteria, values = closed(SEVEN), logits(5)
    gradients = loss_gradients(criteria, SEVEN, CPU, without_autograd=True)
    gradients.set_progress(0.3, 0.0)
    order = [3, 1, 0, 4]
    gradients.keep(order)
    for progress in (0.3, 0.4, 0.7):
        gradients.set_progress(progress, 0.0)
        set_progress(criteria, progress)
        found, _ = gradients(values[order], labels())
        expected = by_autograd([criteria[i] for i in order], values[order], labels())
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_coefficients_change_in_place():
    """A recorded CUDA graph reads them there."""
    gradients = loss_gradients(closed(), TEN, CPU, without_autograd=True)
    numbers = gradients._gradient._coefficients
    place, before = numbers.data_ptr(), numbers.clone()
    gradients.set_progress(0.4, 0.0)
    assert gradients._gradient._coefficients.data_ptr() == place
    assert not torch.equal(gradients._gradient._coefficients, before)


def test_two_taylor_losses_of_one_variable_have_a_closed_form():
    for criterion, expected in [
        (phased(taylor(), taylor()), True),
        (make_loss("sce-then-confirm*0.5", TEN), True),
        (make_loss("ce-then-mae", TEN), True),
        (phased(taylor(), MAELoss()), False),
        (phased(nn.CrossEntropyLoss(), taylor()), False),
        (phased(taylor(), taylor(variable="log")), False),
        (phased(taylor(variable="log"), taylor(variable="log")), False),  # the other is not
        (phased(taylor(), taylor(weight=torch.ones(TEN))), False),
        (phased(taylor(), taylor()).eval(), False),  # its late loss, whatever the progress
    ]:
        assert is_closed_form([taylor(), criterion]) is expected


def test_parts_for_another_number_of_classes_are_an_error():
    with pytest.raises(ValueError, match="built for 10 classes, the task has 7"):
        loss_gradients([phased(taylor(classes=SEVEN), taylor())], SEVEN, CPU, without_autograd=True)


def test_the_progress_reaches_a_loss_within_a_scale():
    criteria = others()
    gradients = loss_gradients(criteria, TEN, CPU, without_autograd=False)
    assert isinstance(gradients, AutogradGradients)
    gradients.set_progress(0.5, 0.0)
    assert [c.progress for c in (criteria[0], criteria[1].criterion)] == [0.5, 0.5]


# --- Trainings ---


@pytest.mark.parametrize("make", [closed, others])
@pytest.mark.parametrize("recipe", [SGD, ADAM], ids=["sgd", "adam"])
@pytest.mark.parametrize("backend", ["separate", "batch"])
def test_a_population_trains_as_each_does_alone(make, recipe, backend):
    task = digits(**recipe)
    runs = together(task, make(), backend=backend, evaluate_at=[4, 8])
    apart = alone(task, make(), backend=backend, evaluate_at=[4, 8])
    for run, own in zip(runs, apart, strict=True):
        if backend == "separate" and make is closed:
            assert bitwise(run, own)
        assert run.curve == own.curve
        alike(run, own, 1e-5)
    assert not same(weights(runs[0]), weights(runs[1]))


@pytest.mark.parametrize(
    "criterion",
    [
        phased(SCELoss(), MAELoss(), total_steps=STEPS),
        phased(taylor(MSE_THETA), taylor(CONFIRM_THETA), total_steps=STEPS),
        ScaledLoss(phased(SCELoss(), taylor(), 0.6, 0.1, total_steps=STEPS), 0.5),
    ],
    ids=["any", "closed form", "scaled"],
)
def test_a_plain_loop_that_only_calls_the_loss_comes_to_the_same(criterion):
    task = digits(**SGD)
    theirs, static = copy.deepcopy(criterion), taylor()
    run, _ = together(task, [criterion, static], backend="separate")

    torch.manual_seed(derive_seed(5, "init"))
    model = build_model("mlp2", num_classes=TEN, image_shape=(1, 8, 8))
    optimizer = build_optimizer(task.spec.recipe, model.parameters())
    order = torch.Generator().manual_seed(derive_seed(5, "order"))
    for _ in range(3):
        shuffled = task.train.index[torch.randperm(100, generator=order)]
        for index, images in task.train.images.batches(shuffled, 32, device=CPU):
            optimizer.zero_grad()
            theirs(model(images), task.train.labels[index]).backward()
            optimizer.step()
    for mine, own in zip(weights(run), model.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, own, atol=1e-6, rtol=1e-5)
    plain = together(task, [static], backend="separate")[0]
    assert not same(weights(run), weights(plain))


def test_a_stopped_candidate_does_not_change_the_phases_of_the_others():
    task = digits(**ADAM)
    usual = together(task, closed(), evaluate_at=[4])
    runs = together(task, closed(), evaluate_at=[4], stop={4: [1, 4]})
    assert [run.stopped for run in runs] == [False, True, False, False, True]
    for i in (0, 2, 3):
        assert runs[i].curve == usual[i].curve
        alike(runs[i], usual[i], 1e-6)


def test_each_horizon_has_its_own_switch():
    """The loss changes at a share of the steps, so that a shorter training changes earlier."""
    task = digits(**SGD)
    for make in (lambda: closed()[0], lambda: ScaledLoss(closed()[0], 2.0), taylor):
        values, steps = {}, []
        for horizons in ((1,), (2,), (1, 2)):
            (found,) = score_losses(
                [task],
                [lambda classes, make=make: make()],
                seed=5,
                horizons=horizons,
                stop_at_chance_after=None,
                device=CPU,
                reports=[lambda step, accuracy, steps=steps: steps.append(step)],
            )
            values[horizons] = found.value
        assert values[1, 2] == pytest.approx((values[1,] + values[2,]) / 2)
        assert steps[-1] == (2 if make is taylor else 3) * STEPS


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_recorded_passes_follow_the_phases():
    task = digits(**SGD)
    cuda = together(task, closed(), device=torch.device("cuda"))
    for run, own in zip(cuda, together(task, closed()), strict=True):
        run.model.cpu()
        alike(run, own, 1e-2)

"""Candidates that are trained together against the same candidates alone."""

import math

import pytest
import torch
from torch import nn

from optuna_robustloss.seeds import derive_seed
from optuna_robustloss.tasks.models import build_model
from optuna_robustloss.tasks.recipes import build_optimizer
from optuna_robustloss.training.population.fusion import Fused
from optuna_robustloss.training.population.population import clip_gradients
from training.tiny import (
    ADAM,
    CPU,
    SGD,
    Loss,
    Normalised,
    alike,
    alone,
    bitwise,
    closed,
    digits,
    diverging,
    dropping_out,
    others,
    same,
    taylor,
    together,
    weights,
    with_network,
)

pytestmark = pytest.mark.integration  # trains networks

BACKENDS = ["separate", "batch", "channels", "vmap"]


def accuracies(runs):
    return [[point.accuracy for point in run.curve] for run in runs]


# Together is the same as apart


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "recipe",
    [
        SGD | {"nesterov": True, "weight_decay": 0.01},
        SGD | {"schedule": "cosine", "augment": True},
        SGD | {"lookahead_k": 3, "lookahead_alpha": 0.5, "clip_grad_norm": 0.5},
        ADAM | {"schedule": "step", "milestones": [0.5], "factors": [0.1]},
        {"optimizer": "adamw", "lr": 0.003, "momentum": 0, "weight_decay": 0.1},
        ADAM | {"lookahead_k": 2, "lookahead_alpha": 0.8},
    ],
    ids=["nesterov", "cosine", "lookahead", "adam", "adamw", "lookahead of adam"],
)
def test_perceptrons_train_together_as_they_do_alone(backend, recipe):
    task = digits(**recipe)
    runs = together(task, closed(), backend=backend, evaluate_at=[4, 8])
    apart = alone(task, closed(), backend="separate", evaluate_at=[4, 8])
    for run, own in zip(runs, apart, strict=True):
        assert [p.step for p in run.curve] == [4, 8, 12]
        alike(run, own)
    assert accuracies(runs) == accuracies(apart)
    if backend == "separate":
        assert all(map(bitwise, runs, apart))
    assert not same(weights(runs[0]), weights(runs[1]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_convolutions_with_batch_norm_train_together_as_they_do_alone(monkeypatch, backend):
    with_network(monkeypatch, Normalised)
    task = digits(train=64, epochs=2, **SGD | {"weight_decay": 1e-3})
    runs = together(task, closed()[:2], backend=backend)
    apart = alone(task, closed()[:2], backend="separate")
    for run, own in zip(runs, apart, strict=True):
        alike(run, own, 1e-3)
        assert run.curve[0].accuracy == pytest.approx(own.curve[0].accuracy, abs=0.01)
    assert not same(weights(runs[0]), weights(runs[1]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_losses_without_a_closed_form_train_together_as_they_do_alone(backend):
    task = digits(**SGD)
    runs, apart = (
        together(task, others(), backend=backend),
        alone(task, others(), backend="separate"),
    )
    for run, own in zip(runs, apart, strict=True):
        alike(run, own)
    assert accuracies(runs) == accuracies(apart)


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_drops_the_same_for_every_candidate(monkeypatch, backend):
    with_network(monkeypatch, dropping_out)
    task = digits(**SGD)
    runs = together(task, [*closed(), taylor()], backend=backend)
    for run, own in zip(runs, alone(task, closed(), backend="separate"), strict=False):
        alike(run, own)
    assert same(weights(runs[0]), weights(runs[3]))


@pytest.mark.parametrize("backend", ["separate", "batch"])
@pytest.mark.parametrize(
    "recipe",
    [
        SGD | {"augment": True, "clip_grad_norm": 0.5, "schedule": "linear"},
        ADAM | {"lookahead_k": 3, "lookahead_alpha": 0.5, "clip_grad_norm": 0.01},
    ],
    ids=["sgd", "adam"],
)
def test_training_is_that_of_a_plain_loop_with_autograd(monkeypatch, backend, recipe):
    """The slow reference: one network, one criterion, PyTorch's own clipping, epoch by epoch."""
    with_network(monkeypatch, dropping_out)
    task = digits(**recipe)
    for run, criterion in zip(together(task, closed(), backend=backend), closed(), strict=True):
        torch.manual_seed(derive_seed(5, "init"))
        model = dropping_out()
        optimizer = build_optimizer(task.spec.recipe, model.parameters())
        order = torch.Generator().manual_seed(derive_seed(5, "order"))
        augment = torch.Generator().manual_seed(derive_seed(5, "augment"))
        torch.manual_seed(derive_seed(5, "dropout"))
        step = 0
        for _ in range(3):
            shuffled = task.train.index[torch.randperm(100, generator=order)]
            for index, images in task.train.images.batches(
                shuffled, 32, device=CPU, augment=augment if "augment" in recipe else None
            ):
                for parameters in optimizer.param_groups:
                    parameters["lr"] = task.spec.recipe.lr_at(step / 12)
                optimizer.zero_grad()
                criterion(model(images), task.train.labels[index]).backward()
                norm = nn.utils.clip_grad_norm_(model.parameters(), recipe["clip_grad_norm"])
                assert norm > recipe["clip_grad_norm"] or step > 0
                optimizer.step()
                step += 1
        for ours, plain in zip(weights(run), model.state_dict().values(), strict=True):
            torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("count", [1, 3])
def test_each_candidates_gradient_is_clipped_by_its_own_length(count):
    torch.manual_seed(0)
    networks = [build_model("mlp2", num_classes=10, image_shape=(1, 8, 8)) for _ in range(count)]
    population = Fused(networks, "batch")
    sizes = torch.tensor([1.0, 1e-4, math.nan][:count])
    for parameter in population.parameters():
        of_each = sizes.view(-1, *[1] * (parameter.ndim - 1))
        parameter.grad = of_each * torch.randn(parameter.shape)
    for k, network in enumerate(networks):
        for theirs, parameter in zip(network.parameters(), population.parameters(), strict=True):
            theirs.grad = parameter.grad[k].clone()
        nn.utils.clip_grad_norm_(network.parameters(), 0.5)
    clip_gradients(population, 0.5)
    for k, network in enumerate(networks):
        for theirs, parameter in zip(network.parameters(), population.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad[k], theirs.grad, equal_nan=True)


@pytest.mark.slow
def test_bfloat16_trains_as_well_as_float32():
    results = {}
    for precision in ("float32", "bfloat16"):
        task = digits(train=800, epochs=4, precision=precision, **SGD)
        for name, criteria in {"closed": closed()[:2], "any": others()[:2]}.items():
            for backend in ("separate", "batch"):
                runs = together(task, criteria, backend=backend)
                results[precision, name, backend] = [run.curve[-1].accuracy for run in runs]
                assert {w.dtype for w in weights(runs[0])} == {torch.float32}
    for (precision, name, backend), values in results.items():
        assert values == pytest.approx(results["float32", name, backend], abs=0.05), (
            precision,
            backend,
        )
    assert results["float32", "any", "batch"][0] > 0.8


# Together with others that end


@pytest.mark.parametrize("kind", ["nan", "overflow", "infinite"])
@pytest.mark.parametrize("position", [0, 3])
@pytest.mark.parametrize("recipe", [SGD | {"lr": 0.3}, ADAM], ids=["sgd", "adam"])
def test_a_candidate_does_not_depend_on_one_that_diverges(kind, position, recipe):
    task = digits(epochs=4, lookahead_k=3, lookahead_alpha=0.5, **recipe)
    usual = together(task, [*others(), Loss()], evaluate_at=[6, 9])
    criteria = others()
    criteria.insert(position, diverging(kind))
    runs = together(task, criteria, evaluate_at=[6, 9])
    ended = runs.pop(position)
    assert ended.diverged
    assert ended.curve[-1].step < 16
    assert len(criteria[position].labels) == ended.curve[-1].step
    for run, own in zip(runs, usual, strict=False):
        assert bitwise(run, own)


@pytest.mark.parametrize("recipe", [SGD, ADAM], ids=["sgd", "adam"])
def test_a_candidate_does_not_depend_on_its_place_or_its_number_of_neighbours(recipe):
    task = digits(augment=True, **recipe)
    criteria = closed()
    usual = together(task, criteria, backend="batch")
    turned = together(task, [*criteria[::-1], taylor(eta=3.0)], backend="batch")
    for run, own in zip(usual, turned[2::-1], strict=True):
        assert bitwise(run, own)
    for run, own in zip(usual, alone(task, criteria, backend="batch"), strict=True):
        assert run.curve == own.curve
        alike(run, own, 1e-6)


def test_a_candidate_does_not_depend_on_others_that_are_stopped():
    task = digits(epochs=4, **ADAM)
    criteria = [*closed(), taylor(eta=4.0), taylor(eta=5.0)]
    runs = together(task, criteria, evaluate_at=[8], stop={4: [0], 6: [2], 16: [4]})
    usual = together(task, criteria, evaluate_at=[4, 6, 8])
    assert bitwise(runs[1], usual[1])
    assert bitwise(runs[3], usual[3])
    assert [[p.step for p in run.curve] for run in runs] == [
        *([4], [4, 6, 8, 16], [4, 6]),
        *([4, 6, 8, 16], [4, 6, 8, 16]),
    ]
    assert [run.stopped for run in runs] == [True, False, True, False, True]
    assert [run.complete for run in runs] == [False, True, False, True, False]
    ended = together(task, criteria, epochs=1, evaluate_at=[4])
    assert same(weights(runs[0]), weights(ended[0]))  # kept as it was when it ended

"""What losses need from the loop: indices, and an L1 norm in place of weight decay."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from optuna_robustloss.losses import ANLCELoss, ELRLoss, ScaledLoss
from optuna_robustloss.tasks.recipes import build_optimizer
from optuna_robustloss.training.networks import initial_model
from optuna_robustloss.training.population.fusion import Fused
from optuna_robustloss.training.population.population import Single, add_l1
from optuna_robustloss.training.train import train
from training.tiny import ADAM, CPU, SGD, alike, digits, options, taylor, together, weights

pytestmark = pytest.mark.integration  # trains networks


def plain_loop(task, criterion, *, index=False, l1=0.0):
    """A loop as a user would write it, on the batches that ours sees."""
    model = initial_model(task, 5)
    optimizer = build_optimizer(task.spec.recipe, model.parameters())
    recorder = Recorder()
    train(task, [recorder], **options(task, backend="separate", keep_models=False)).finish()
    for chosen, labels in recorder.batches:
        ((_, images),) = task.train.images.batches(chosen, len(chosen), device=CPU)
        loss = criterion(model(images), labels, *[chosen] * index)
        loss = loss + l1 * sum(p.abs().sum() for p in model.parameters())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


class Recorder(nn.Module):
    takes_index = True

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, logits, labels, index):
        self.batches.append((index.clone(), labels.clone()))
        return F.cross_entropy(logits, labels)


@pytest.mark.parametrize("backend", ["separate", "batch", "channels"])
def test_elr_in_a_population_is_elr_in_a_plain_loop(backend):
    task = digits("digits,mlp2,symmetric:0.4", **ADAM)
    count = len(task.train.labels)
    criteria = [ELRLoss(count, 10), nn.CrossEntropyLoss(), ScaledLoss(ELRLoss(count, 10), 0.5)]
    runs = train(task, criteria, **options(task, backend=backend)).finish()
    for run, fresh in (
        (runs[0], ELRLoss(count, 10)),
        (runs[2], ScaledLoss(ELRLoss(count, 10), 0.5)),
    ):
        own = plain_loop(task, fresh, index=True)
        for mine, theirs in zip(weights(run), own.state_dict().values(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_the_l1_norm_of_a_loss_is_added():
    task = digits("digits,mlp2,symmetric:0.4", **ADAM)
    strong = [ANLCELoss(l1=0.01), ANLCELoss(l1=0.0), ScaledLoss(ANLCELoss(l1=0.01), 2.0)]
    runs = train(task, strong, **options(task, backend="batch")).finish()
    own = plain_loop(task, ANLCELoss(l1=0.01), l1=0.01)
    for mine, theirs in zip(weights(runs[0]), own.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    sizes = [sum(float(w.abs().sum()) for w in weights(run)) for run in runs]
    assert sizes[2] < sizes[0] < sizes[1]


@pytest.mark.parametrize("fused", [True, False])
def test_the_gradient_of_the_norm_is_each_candidates_own(fused):
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(4, 3)) for _ in range(2 if fused else 1)]
    factors = [0.5, 0.0][: len(networks)]
    population = Fused(networks, layout="batch") if fused else Single(networks[0])
    for parameter in population.parameters():
        parameter.grad = torch.zeros_like(parameter)
    add_l1(population, factors)
    for parameter in population.parameters():
        rows = parameter if fused else parameter.unsqueeze(0)
        gradients = parameter.grad if fused else parameter.grad.unsqueeze(0)
        for row, gradient, factor in zip(rows, gradients, factors, strict=True):
            assert torch.equal(gradient, factor * row.detach().sign())


@pytest.mark.parametrize(
    "recipe",
    [SGD, {"optimizer": "adamw", "lr": 0.003, "momentum": 0}],
    ids=["sgd", "adamw"],
)
def test_an_l1_norm_takes_the_place_of_weight_decay(recipe):
    """As the authors train: ANL-CE without decay, the others of the same population with it."""
    plain, decayed = digits(**recipe), digits(**recipe, weight_decay=0.05)
    criteria = [taylor(), ANLCELoss(l1=0.01), ScaledLoss(ANLCELoss(l1=0.01), 0.5), ANLCELoss(l1=0)]
    runs = together(decayed, criteria)
    without = together(plain, criteria)
    for index in (1, 2):
        alike(runs[index], without[index], 1e-6)
    alone = together(decayed, [criteria[0], criteria[3]])
    for index, own in zip((0, 3), alone, strict=True):
        alike(runs[index], own, 1e-6)
        with pytest.raises(AssertionError, match="not close"):
            alike(runs[index], without[index], 1e-6)

"""Forward correction, JoCoR, and what losses need from the loop: indices and an L1 norm."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from optuna_robustloss.losses import ANLCELoss, ELRLoss, ForwardCorrectionLoss, ScaledLoss
from optuna_robustloss.tasks.recipes import build_optimizer
from optuna_robustloss.training import methods as procedures
from optuna_robustloss.training.methods import (
    JoCoRLoss,
    build_twins,
    estimate_transition,
    predict,
    train_forward_corrected,
    train_jocor,
)
from optuna_robustloss.training.networks import initial_model
from optuna_robustloss.training.population.fusion import Fused
from optuna_robustloss.training.population.population import Single, add_l1
from optuna_robustloss.training.train import train
from training.tiny import ADAM, CPU, digits, same, trained, weights

pytestmark = pytest.mark.integration  # trains networks


def options(task, **more):
    return {
        "seed": 5,
        "evaluate_on": task.test,
        "evaluate_at": (),
        "device": CPU,
        "keep_models": True,
    } | more


# --- Forward correction ---


def test_the_matrix_of_a_perfect_network_is_estimated():
    """Outputs are the rows of the true matrix, but for the surest, which are outliers."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(4, 4, generator=generator).double() + 4 * torch.eye(4)
    transition = rows / rows.sum(1, keepdim=True)
    classes = torch.arange(4).repeat(100)
    probabilities = transition[classes]
    probabilities[:8] = torch.eye(4, dtype=torch.double)[classes[:8]]
    found = estimate_transition(probabilities, 0.97)
    torch.testing.assert_close(found, transition)
    torch.testing.assert_close(estimate_transition(probabilities, 1.0), torch.eye(4).double())


def test_rows_are_distributions_even_of_few_images():
    probabilities = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    matrix = estimate_transition(probabilities)
    torch.testing.assert_close(matrix.sum(1), torch.ones(2).double())


def test_the_second_training_uses_the_matrix_of_the_first(monkeypatch):
    task = digits("digits,mlp2,pair-flip:0.4", train=400, epochs=12, **ADAM)
    matrices = []

    class Kept(ForwardCorrectionLoss):
        def __init__(self, transition):
            super().__init__(transition)
            matrices.append(transition)

    monkeypatch.setattr(procedures, "ForwardCorrectionLoss", Kept)
    run = train_forward_corrected(task, **options(task))
    first = trained(task, nn.CrossEntropyLoss(), evaluate_on=task.test)
    expected = estimate_transition(predict(first.model, task.train, CPU))
    torch.testing.assert_close(matrices, [expected])
    second = trained(task, ForwardCorrectionLoss(expected), evaluate_on=task.test)
    assert same(weights(run), weights(second))
    assert not same(weights(run), weights(first))


def test_a_first_training_that_diverged_is_the_result():
    task = digits(optimizer="sgd", lr=1e30, momentum=0)
    assert train_forward_corrected(task, **options(task)).diverged


# --- JoCoR ---


def slow_jocor(logits, target, remember, co_lambda):
    losses = []
    for pair, label in zip(logits, target, strict=True):
        p, q = (row.softmax(-1) for row in pair)
        supervised = -p[label].log() - q[label].log()
        divergence = (p * (p / q).log()).sum() + (q * (q / p).log()).sum()
        losses.append((1 - co_lambda) * supervised + co_lambda * divergence)
    losses = torch.stack(losses)
    kept = sorted(range(len(losses)), key=lambda i: losses[i].item())
    return losses[kept[: int(remember * len(losses))]].mean()


@pytest.mark.parametrize(("epoch", "remember"), [(0, 1.0), (5, 0.8), (10, 0.6), (30, 0.6)])
def test_the_loss_of_both_networks_is_that_of_the_paper(epoch, remember):
    generator = torch.Generator().manual_seed(epoch)
    logits = torch.randn(20, 2, 5, generator=generator, requires_grad=True)
    target = torch.randint(5, (20,), generator=generator)
    loss = JoCoRLoss(0.4, epochs=40)
    loss.progress = epoch / 40
    assert loss.remember_rate == pytest.approx(remember)
    found = loss(logits, target)
    expected = slow_jocor(logits, target, remember, 0.9)
    torch.testing.assert_close(found, expected)
    gradients = [
        torch.autograd.grad(one, logits, retain_graph=True)[0] for one in (found, expected)
    ]
    torch.testing.assert_close(*gradients)
    dropped = (gradients[0] == 0).flatten(1).all(1).sum()
    assert dropped == 20 - int(remember * 20)


@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_the_loss_is_finite_at_extreme_logits(extreme):
    logits = torch.zeros(2, 2, 3)
    logits[:, 0, 0] = extreme
    logits.requires_grad_()
    loss = JoCoRLoss(0.0, epochs=1)(logits, torch.tensor([0, 1]))
    loss.backward()
    assert math.isfinite(loss.item())
    assert torch.isfinite(logits.grad).all()


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="shares below 1, got 1"):
        JoCoRLoss(1.0, epochs=2)
    with pytest.raises(ValueError, match=r"\(N, 2, C\), got \(4, 3\)"):
        JoCoRLoss(0.1, epochs=2)(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long))


def test_twins_start_differently_and_are_evaluated_by_the_first():
    task = digits()
    pair = build_twins(task, 3)
    first, second = pair.first.state_dict().values(), pair.second.state_dict().values()
    assert same(first, initial_model(task, 3).state_dict().values())
    assert not same(first, second)
    images = torch.rand(5, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(pair(images), pair.first(images))
    assert torch.equal(pair(images), torch.stack([pair.first(images), pair.second(images)], 1))


def test_jocor_trains_both_networks_with_the_realised_noise_rate(monkeypatch):
    task = digits("digits,mlp2,symmetric:0.4", train=300, epochs=15, **ADAM)
    rates = []

    class Kept(JoCoRLoss):
        def __init__(self, forget_rate, epochs):
            super().__init__(forget_rate, epochs)
            rates.append((forget_rate, epochs))

    monkeypatch.setattr(procedures, "JoCoRLoss", Kept)
    run = train_jocor(task, **options(task))
    assert rates == [(task.noise.rate, 15)]
    assert run.curve[-1].accuracy > 0.6
    loss = JoCoRLoss(task.noise.rate, 15)
    more = {"backend": "separate", "network": build_twins}
    (both,) = train(task, [loss], **options(task, **more)).finish()
    assert same(weights(run), both.model.first.state_dict().values())
    start = build_twins(task, 5)
    assert not same(weights(run), start.first.state_dict().values())
    second = both.model.second.state_dict().values()
    assert not same(second, start.second.state_dict().values())
    assert loss.progress == pytest.approx(1 - 1 / 150)


def test_without_noise_jocor_keeps_every_image():
    loss = JoCoRLoss(0.0, epochs=20)
    loss.progress = 0.9
    assert loss.remember_rate == 1


# --- What losses need from the loop ---


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

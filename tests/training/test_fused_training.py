"""Populations in training: several steps, fewer and more candidates, and that they never mix."""

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from optuna_robustloss.losses import MAE_THETA, MSE_THETA, MAELoss, TaylorLoss
from optuna_robustloss.training.gradients import loss_gradients
from optuna_robustloss.training.population.fused_layers import batched_linear
from optuna_robustloss.training.population.population import Population
from optuna_robustloss.training.population.vmapped import Vmapped
from training.nets import convolutional, every_build, images, perceptron

pytestmark = pytest.mark.integration  # trains networks


def different(number: int, make=None, dtype=torch.float64) -> list[nn.Module]:
    networks = []
    for seed in range(number):
        torch.manual_seed(seed)
        networks.append((make or small)().to(dtype))
    return networks


def small() -> nn.Module:
    return convolutional(nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.2))


def mlp() -> nn.Module:
    return perceptron(nn.ReLU())


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def step(model: nn.Module, optimizer, seed: int, dtype=torch.float64) -> Tensor:
    """One step of cross-entropy; returns the losses ``(K,)`` or of the network ``()``."""
    torch.manual_seed(seed)
    logits = model(images(8, seed=seed, dtype=dtype))
    labels = torch.arange(8) % 5
    log_p = logits.log_softmax(-1)
    losses = -log_p[..., torch.arange(8), labels].mean(-1)
    optimizer.zero_grad()
    losses.sum().backward()
    optimizer.step()
    return losses.detach()


@every_build
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_several_steps(build, dtype):
    networks = different(4, dtype=dtype)
    population = build(networks)
    mine, theirs = sgd(population), [sgd(network) for network in networks]
    for seed in range(4):
        expected = torch.stack(
            [step(n, o, seed, dtype) for n, o in zip(networks, theirs, strict=True)]
        )
        # Float32 rounding grows with the steps.
        rtol = 1e-5 * 10**seed if dtype is torch.float32 else 1e-11
        torch.testing.assert_close(step(population, mine, seed, dtype), expected, rtol=rtol, atol=0)


@every_build
@pytest.mark.parametrize("make", [mlp, small])
def test_an_epoch_with_a_loss_for_each(build, make):
    """The same losses after a step, and the same accuracies after an epoch of eight batches."""
    criteria = [TaylorLoss(MAE_THETA, 5, eta=eta) for eta in (1.0, 10.0)]
    criteria += [TaylorLoss(MSE_THETA, 5), MAELoss()]
    networks = different(4, make)
    population = build(networks)
    gradients = loss_gradients(criteria, 5, torch.device("cpu"), without_autograd=False)
    optimizers = [sgd(network) for network in networks]
    mine = sgd(population)
    x = images(256)
    labels = (x.mean((1, 2, 3)) * 40).long().clamp(-2, 2) + 2
    for number in range(8):
        batch = slice(32 * number, 32 * number + 32)
        torch.manual_seed(number)
        mine.zero_grad()
        logits = population(x[batch])
        logits.backward(gradients(logits.detach(), labels[batch])[0])
        mine.step()
        for network, criterion, optimizer in zip(networks, criteria, optimizers, strict=True):
            torch.manual_seed(number)
            optimizer.zero_grad()
            criterion(network(x[batch]), labels[batch]).backward()
            optimizer.step()
        if number == 0:
            torch.manual_seed(99)
            for criterion, own, network in zip(criteria, population(x), networks, strict=True):
                torch.manual_seed(99)
                expected = criterion(network(x), labels)
                torch.testing.assert_close(criterion(own, labels), expected, rtol=1e-5, atol=0)
    correct = (population.eval()(x).argmax(-1) == labels).sum(-1)
    expected = [(network.eval()(x).argmax(-1) == labels).sum() for network in networks]
    assert torch.equal(correct, torch.stack(expected))


@every_build
def test_kept_candidates_train_on(build):
    networks = different(3)
    population = build(networks)
    for seed in range(2):
        step(population, torch.optim.SGD(population.parameters(), lr=0.1), seed)
        for network in networks:
            step(network, torch.optim.SGD(network.parameters(), lr=0.1), seed)
    population.keep([2, 0])
    left = [networks[2], networks[0]]
    assert population.size == 2
    step(population, torch.optim.SGD(population.parameters(), lr=0.1), 9)
    for network in left:
        step(network, torch.optim.SGD(network.parameters(), lr=0.1), 9)
    for index, network in enumerate(left):
        extracted = population.network(index)
        assert type(extracted) is type(network)
        torch.testing.assert_close(extracted.state_dict(), network.state_dict())
        assert [t.dtype for t in extracted.state_dict().values()] == [
            t.dtype for t in network.state_dict().values()
        ]


@every_build
def test_one_candidate_is_a_population(build):
    networks = different(3)
    population = build(networks)
    population.keep([1])
    population.eval()
    networks[1].eval()
    torch.testing.assert_close(population(images())[0], networks[1](images()))


@every_build
def test_an_extracted_network_is_a_copy(build):
    population = build(different(2))
    network = population.eval().network(1)
    assert not network.training
    with torch.no_grad():
        next(network.parameters()).zero_()
    assert bool(next(population.parameters())[1].any())
    for tensor in (*population.parameters(), *population.buffers()):
        assert tensor.shape[0] == 2


@pytest.mark.parametrize("number", [1, 2, 5])
@every_build
def test_dropout_draws_what_one_network_draws(build, number):
    make = partial(convolutional, nn.Dropout(0.5), nn.Dropout2d(0.3), DropPath(0.2))
    networks = different(number, make)
    population = build(networks)
    states = []
    for model in (population, networks[-1]):
        torch.manual_seed(3)
        states.append((model(images())[..., :, :], torch.get_rng_state()))
    assert torch.equal(states[0][1], states[1][1])
    torch.testing.assert_close(states[0][0][-1], states[1][0])


# --- Candidates never mix -----------------------------------------------------------------------


def one_step(networks: Sequence[nn.Module], build, keep=None, poisoned=None) -> tuple:
    """Logits, gradients and buffers, by candidate, of one training pass in single precision."""
    population: Population = build(networks)
    if keep is not None:
        population.keep(keep)
    with torch.no_grad():
        for parameter in population.parameters():
            if poisoned is not None:
                parameter[poisoned] = float("nan")
    torch.manual_seed(0)
    logits = population(images(16, dtype=torch.float32))
    gradient = torch.randn(16, 5, generator=torch.Generator().manual_seed(1))
    logits.backward(gradient.expand_as(logits))
    tensors = [logits, *(p.grad for p in population.parameters()), *population.buffers()]
    return tuple(t.detach() for t in tensors)


@pytest.mark.parametrize("make", [mlp, small])
@every_build
def test_nans_stay_with_their_candidate(build, make):
    networks = different(4, make, torch.float32)
    clean = one_step(networks, build)
    poisoned = one_step(networks, build, poisoned=1)
    assert torch.isnan(poisoned[0][1]).all()
    for one, other in zip(clean, poisoned, strict=True):
        assert torch.equal(one[[0, 2, 3]], other[[0, 2, 3]])


@pytest.mark.parametrize("make", [mlp, small])
@every_build
def test_a_candidate_does_not_depend_on_the_others(build, make):
    networks = different(4, make, torch.float32)
    everybody = one_step(networks, build)
    left = one_step(networks, build, keep=[3, 0])
    for one, other in zip(everybody, left, strict=True):
        torch.testing.assert_close(one[[3, 0]], other)


@every_build
@pytest.mark.parametrize("make", [mlp, small])
def test_half_precision(build, make):
    networks = different(3, make, torch.float32)
    population = build(networks)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(0)
        logits = population(images(8, dtype=torch.float32))
        torch.manual_seed(0)
        expected = networks[1](images(8, dtype=torch.float32))
    if build is not Vmapped:  # which adds the bias in single precision
        assert logits.dtype == expected.dtype
    gradient = torch.ones_like(expected)
    logits.backward(gradient.expand_as(logits))
    expected.backward(gradient)
    torch.testing.assert_close(logits[1].float(), expected.float(), rtol=0.05, atol=0.05)
    assert all(p.grad.dtype is torch.float32 for p in population.parameters())
    buffers = zip(population.buffers(), networks[1].buffers(), strict=True)
    for mine, theirs in buffers:
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine[1], theirs, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_batched_linear_in_single_precision(shared, biased):
    """The fast batched_linear against `torch.einsum` in double precision, with all gradients."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1 if shared else 3, 7, 33), (3, 20, 33)] + [(3, 20)] * biased
    doubles = [torch.randn(s, generator=generator).double().requires_grad_() for s in shapes]
    singles = [t.detach().float().requires_grad_() for t in doubles]
    weight = torch.randn(3, 7, 20, generator=generator)
    x = doubles[0].expand(3, -1, -1)
    expected = torch.einsum("kmf,kof->kmo", x, doubles[1])
    if biased:
        expected = expected + doubles[2].unsqueeze(1)
    found = batched_linear(*singles, *[None] * (not biased))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    found.backward(weight)
    expected.backward(weight.double())
    for one, other in zip(singles, doubles, strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-4, atol=1e-4)

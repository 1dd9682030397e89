"""What candidates take, and what happens where they do not all fit."""

import copy
import gc
import logging
import math
import weakref

import pytest
import torch
from torch import nn

from optuna_robustloss.losses import ELRLoss, MAELoss, PhasedLoss, ScaledLoss
from optuna_robustloss.tasks.models import build_model
from optuna_robustloss.training import train as train_module
from optuna_robustloss.training.loop import Group
from optuna_robustloss.training.population import memory
from optuna_robustloss.training.population.memory import (
    bytes_per_candidate,
    fitting_size,
    out_of_memory,
)
from optuna_robustloss.training.population.population import Population
from training.tiny import (
    ADAM,
    CPU,
    SGD,
    Normalised,
    alike,
    bitwise,
    digits,
    diverging,
    same,
    taylor,
    together,
    with_network,
)

pytestmark = pytest.mark.integration  # trains networks

LOSSES = [(2.0, 0), (3.0, 0.1), (4.0, 0), (5.0, 0.2), (6.0, 0)]


def five():
    return [taylor(eta=eta, cross_entropy_weight=alpha) for eta, alpha in LOSSES]


def network(name="mlp2"):
    return build_model(name, num_classes=10, image_shape=(1, 8, 8))


# The estimate


def test_a_candidate_takes_more_with_a_larger_batch_and_a_larger_network():
    small, large = (digits(train=800, batch_size=b) for b in (16, 256))
    for name in ("mlp2", "jocor"):
        assert bytes_per_candidate(network(name), small, CPU) < bytes_per_candidate(
            network(name), large, CPU
        )
    assert bytes_per_candidate(network("mlp2"), small, CPU) < bytes_per_candidate(
        network("mlp3"), small, CPU
    )
    one = bytes_per_candidate(network("jocor"), large, CPU)
    assert one > 256 * 64 * 8 * 8 * 4 * 4  # the first stage alone keeps so much
    few = digits(train=20, batch_size=256)  # a batch has no more images than there are
    assert bytes_per_candidate(network(), few, CPU) < bytes_per_candidate(network(), large, CPU)


@pytest.mark.parametrize(
    ("recipe", "states"),
    [
        ({"optimizer": "sgd", "momentum": 0}, 0),
        ({"optimizer": "sgd", "momentum": 0.9}, 1),
        ({"optimizer": "adam", "momentum": 0}, 2),
        ({"optimizer": "adamw", "momentum": 0, "lookahead_k": 5, "lookahead_alpha": 0.5}, 3),
    ],
)
def test_the_optimisers_state_counts(recipe, states):
    weights = sum(4 * p.numel() for p in network().parameters())
    plain = digits(optimizer="sgd", momentum=0)
    more = bytes_per_candidate(network(), digits(**recipe), CPU)
    assert more - bytes_per_candidate(network(), plain, CPU) == states * weights


def test_estimating_changes_neither_the_network_nor_random_numbers():
    model = network("jocor").eval()
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(4)
    state = torch.get_rng_state()
    bytes_per_candidate(model, digits(), CPU)
    assert same(before.values(), model.state_dict().values())
    assert all(p.grad is None for p in model.parameters())
    assert not any(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("free", "fitting"), [(0, 1), (0.5, 1), (2.6, 2), (3.9, 3), (1000, 7), (math.inf, 7)]
)
def test_the_fitting_size_follows_the_free_memory_and_is_at_least_one(monkeypatch, free, fitting):
    task, model = digits(), network()
    one = bytes_per_candidate(model, task, CPU)
    monkeypatch.setattr(memory, "free_bytes", lambda device: free * one)
    assert fitting_size(model, task, 7, CPU) == fitting


def test_the_free_memory_of_this_machine_is_known():
    assert memory.free_bytes(CPU) > 2**20


def test_out_of_memory_differs_from_other_errors():
    for error, expected in [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("can't allocate memory"), False),
    ]:
        assert out_of_memory(error) is expected


# Several groups


def limited(monkeypatch, size):
    monkeypatch.setattr(
        train_module, "fitting_size", lambda model, task, count, device: min(count, size)
    )


def sizes(monkeypatch):
    """How many candidates every step was for."""
    seen = []

    def counted(self, *batch):
        seen.append(len(self.candidates))
        return original(self, *batch)

    original = Group._forward_backward
    monkeypatch.setattr(Group, "_forward_backward", counted)
    return seen


@pytest.mark.parametrize(
    ("make", "backend", "recipe"),
    [
        (network, "batch", ADAM | {"augment": True}),
        (network, "vmap", SGD | {"lookahead_k": 5, "lookahead_alpha": 0.5}),
        (Normalised, "channels", SGD | {"lookahead_k": 5, "lookahead_alpha": 0.5}),
        (Normalised, "batch", SGD | {"nesterov": True}),
    ],
)
def test_groups_give_what_all_together_give(monkeypatch, make, backend, recipe):
    with_network(monkeypatch, make)
    task = digits(train=48, batch_size=16, schedule="cosine", **recipe)
    options = {"backend": backend, "evaluate_at": [3], "stop": {4: [0, 4], 7: [3]}}
    usual = together(task, five(), **options)
    seen = sizes(monkeypatch)
    limited(monkeypatch, 2)
    runs = together(task, five(), **options)  # 0 3, 1 4, 2; then 3, 1, 2; then 1, 2
    assert sorted(seen) == [1] * (4 + 3 * 3 + 2 * 2) + [2] * (4 + 4)
    for run, own in zip(runs, usual, strict=True):
        assert [p.step for p in run.curve] == [p.step for p in own.curve]
        assert run.stopped == own.stopped
        alike(run, own, 1e-3)


def test_groups_use_the_closed_form_only_where_all_losses_have_one(monkeypatch):
    task = digits(epochs=4, **ADAM)
    criteria = [nn.CrossEntropyLoss(), diverging(), taylor(), taylor(eta=3.0)]
    usual = together(task, criteria)
    limited(monkeypatch, 2)
    runs = together(task, criteria)
    assert runs[1].diverged
    for run, own in zip(runs, usual, strict=True):
        assert run.curve[-1] == own.curve[-1]
        alike(run, own) if run.complete else None


def test_groups_are_parked_as_soon_as_they_are_built(monkeypatch):
    """With all of them on the device at once there would be no room for the first."""
    events = []
    build, park = train_module.build, Group.park
    monkeypatch.setattr(train_module, "build", lambda *a: events.append("built") or build(*a))
    monkeypatch.setattr(Group, "park", lambda self: events.append("parked") or park(self))
    limited(monkeypatch, 2)
    together(digits(**ADAM), five(), backend="batch")
    assert events[:6] == ["built", "parked"] * 3


# Out of memory


class Full:
    """Makes populations of more than ``fitting`` candidates raise from their pass ``at`` on."""

    def __init__(self, monkeypatch, error, *, at=1, fitting=2):
        self.raised, self.alive = 0, []
        build = train_module.build

        def built(backend, networks):
            gc.disable()
            self.alive.append(sum(reference() is not None for reference in populations))
            population = build(backend, networks)
            populations.append(weakref.ref(population))
            population.register_forward_pre_hook(check)
            return population

        def check(population: Population, _):
            if population.training:
                passes[id(population)] = passes.get(id(population), 0) + 1
            if population.size > fitting and passes.get(id(population), 0) >= at:
                self.raised += 1
                raise type(error)(*error.args)  # anew: its traceback holds the group

        populations, passes = [], {}
        monkeypatch.setattr(train_module, "build", built)


@pytest.fixture
def collecting():
    yield
    gc.enable()


@pytest.mark.parametrize(
    ("error", "at"),
    [(torch.OutOfMemoryError("CUDA"), 1), (RuntimeError("can't allocate memory: 7 GB"), 6)],
    ids=["cuda", "cpu"],
)
@pytest.mark.usefixtures("collecting")
def test_groups_that_do_not_fit_are_halved_and_start_again(monkeypatch, caplog, error, at):
    task = digits(augment=True, **ADAM)
    usual = together(task, five(), evaluate_at=[3, 8])
    full = Full(monkeypatch, error, at=at)
    with caplog.at_level(logging.WARNING):
        runs = together(task, five(), evaluate_at=[3, 8])
    assert full.raised == 2  # 5 together, then 3 of 5
    assert full.alive == [0, 0, 1, 1, 2]  # what did not fit is gone when its halves are built
    assert [run.curve for run in runs] == [run.curve for run in usual]
    for run, own in zip(runs, usual, strict=True):
        alike(run, own)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "5 candidates do not fit into memory together: restarting them 3 at a time",
        "3 candidates do not fit into memory together: restarting them 2 at a time",
    ]


@pytest.mark.usefixtures("collecting")
def test_losses_with_memory_forget_it_at_a_restart_and_in_the_next_training(monkeypatch):
    task = digits(**SGD)
    memories = [ELRLoss(len(task.train.labels), 10, lam=lam) for lam in (3.0, 7.0)]
    criteria = [memories[0], PhasedLoss(ScaledLoss(memories[1], 0.5), MAELoss(), switch=0.5)]
    usual = together(task, criteria)
    remembered = [loss.average.clone() for loss in memories]
    assert all(average.any() for average in remembered)
    full = Full(monkeypatch, MemoryError(), fitting=1, at=6)
    again = together(task, criteria, evaluate_at=[3])
    assert full.raised == 1
    for run, own in zip(again, usual, strict=True):
        alike(run, own, 1e-6)
    for loss, average in zip(memories, remembered, strict=True):
        torch.testing.assert_close(loss.average, average)


def test_a_loss_that_is_given_twice_remembers_for_each_network():
    task = digits(**SGD)
    loss = ELRLoss(len(task.train.labels), 10)
    for run in together(task, [loss, loss]):
        alike(run, together(task, [loss])[0], 1e-6)


@pytest.mark.usefixtures("collecting")
def test_candidates_that_ended_before_a_restart_stay_ended(monkeypatch):
    task = digits(**ADAM)
    criteria = [*five(), diverging()]
    Full(monkeypatch, MemoryError(), at=8)
    runs = together(task, criteria, backend="batch", stop={5: [0]})
    assert [run.stopped for run in runs] == [True] + [False] * 5
    assert [run.diverged for run in runs] == [False] * 5 + [True]
    assert [[p.step for p in run.curve] for run in runs] == [[5]] + [[5, 12]] * 4 + [[4]]


@pytest.mark.usefixtures("collecting")
def test_a_single_candidate_that_does_not_fit_is_an_error(monkeypatch):
    full = Full(monkeypatch, torch.OutOfMemoryError("CUDA out of memory"), fitting=0)
    with pytest.raises(torch.OutOfMemoryError):
        together(digits(**ADAM), five()[:2], backend="batch")
    assert full.raised == 2


@pytest.mark.usefixtures("collecting")
def test_other_errors_are_raised(monkeypatch):
    full = Full(monkeypatch, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        together(digits(**ADAM), five(), backend="batch")
    assert full.raised == 1


def test_bitwise_compares_curves_and_weights():
    task = digits(**ADAM)
    first, second = together(task, [taylor(), taylor(eta=3.0)])
    assert bitwise(first, first)
    assert not bitwise(first, second)

"""Recorded passes: their bookkeeping on the CPU with a graph that re-runs the pass, and on CUDA."""

import logging
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from optuna_robustloss.training import train as train_module
from optuna_robustloss.training.loop import Group
from optuna_robustloss.training.population.cuda_graphs import _WARM_UP, Recorder
from training.tiny import (
    ADAM,
    SGD,
    Normalised,
    alike,
    bitwise,
    closed,
    digits,
    dropping_out,
    taylor,
    together,
    with_network,
)

pytestmark = pytest.mark.integration  # trains networks

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class FakeGraph:
    """Replays by running the pass again, on what the recorder holds, into the same gradients."""

    def __init__(self):
        self.replays, self.recorder = 0, None

    def replay(self):
        self.replays += 1
        recorder = self.recorder
        parameters = list(recorder._population.parameters())
        places = [parameter.grad for parameter in parameters]
        result = recorder._run(recorder._images, recorder._labels)
        for parameter, place in zip(parameters, places, strict=True):
            assert (parameter.grad is None) == (place is None)
            if place is not None:
                place.copy_(parameter.grad)
            parameter.grad = place
        recorder._result.copy_(result)


@pytest.fixture
def faked(monkeypatch):
    """Every group has a recorder; what is CUDA's is the CPU's."""
    seen = SimpleNamespace(graphs=[], recorder=None, sizes=[], failing=False)

    def graph():
        seen.graphs.append(FakeGraph())
        return seen.graphs[-1]

    @contextmanager
    def recording(graph):
        graph.recorder = seen.recorder
        assert all(p.grad is None for p in graph.recorder._population.parameters())
        yield
        seen.sizes.append(len(graph.recorder._images))
        if seen.failing:
            raise RuntimeError("operation not permitted when stream is capturing")

    def init(self, *args):
        original(self, *args)
        self._pass = Recorder(self._forward_backward, self.population)

    def record(self, *batch):
        seen.recorder = self
        recording_(self, *batch)

    original, recording_ = Group.__init__, Recorder._record
    monkeypatch.setattr(Recorder, "_record", record)
    monkeypatch.setattr(Group, "__init__", init)
    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, value in {
        "Stream": lambda device: stream,
        "current_stream": lambda device: stream,
        "stream": lambda stream: nullcontext(),
        "CUDAGraph": graph,
        "graph": recording,
        "get_rng_state": lambda device: torch.get_rng_state(),
        "set_rng_state": lambda state, device: torch.set_rng_state(state),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return seen


def usual_and(monkeypatch, *args, **options):
    """The same training with passes that are run as they are, and with recorded ones."""
    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "__call__", lambda self, *batch: self._run(*batch))
        usual = together(*args, **options)
    return usual, together(*args, **options)


@pytest.mark.parametrize("make", [Normalised, dropping_out])
@pytest.mark.parametrize("recipe", [SGD | {"clip_grad_norm": 0.5}, ADAM], ids=["sgd", "adam"])
def test_recorded_passes_train_as_plain_ones(faked, monkeypatch, make, recipe):
    with_network(monkeypatch, make)
    task = digits(augment=True, **recipe)  # batches of 32, 32, 32 and 4 images
    usual, runs = usual_and(monkeypatch, task, closed(), backend="batch", evaluate_at=[2, 7])
    assert all(map(bitwise, runs, usual))
    assert [graph.replays for graph in faked.graphs] == [9]
    assert faked.sizes == [32]


def test_a_graph_ends_with_its_candidates(faked, monkeypatch):
    with_network(monkeypatch, Normalised)
    options = {"backend": "batch", "stop": {2: [0], 6: [1]}}
    usual, runs = usual_and(monkeypatch, digits(**ADAM), closed(), **options)
    assert all(map(bitwise, runs, usual))
    assert [graph.replays for graph in faked.graphs] == [2, 3, 4]


def test_a_recording_of_a_short_batch_gives_way_to_one_of_a_full(faked, monkeypatch):
    """A candidate that leaves before the last batch of an epoch must not cost all graphs."""
    options = {"backend": "batch", "stop": {3: [0]}}
    usual, runs = usual_and(monkeypatch, digits(**ADAM), closed(), **options)
    assert all(map(bitwise, runs, usual))
    assert faked.sizes == [32, 4, 32]
    assert [graph.replays for graph in faked.graphs] == [3, 1, 6]


def test_a_network_that_cannot_be_recorded_runs_kernel_by_kernel(faked, monkeypatch, caplog):
    with_network(monkeypatch, Normalised)
    faked.failing = True
    with caplog.at_level(logging.WARNING):
        usual, runs = usual_and(monkeypatch, digits(**ADAM), closed(), backend="batch")
    assert all(map(bitwise, runs, usual))
    assert len(faked.graphs) == 1  # one try is enough
    assert faked.graphs[0].replays == 0
    (record,) = caplog.records
    assert "runs kernel by kernel: operation not permitted" in record.getMessage()


@pytest.mark.usefixtures("faked")
def test_warming_up_leaves_statistics_and_random_numbers():
    torch.manual_seed(0)
    model = Normalised()
    calls = []

    def run(images, labels):
        calls.append(images.shape)
        for parameter in model.parameters():
            parameter.grad = None
        model(images).sum().backward()
        return labels.clone()

    recorder = Recorder(run, model)
    images, labels = torch.randn(6, 1, 8, 8), torch.arange(6)
    state = torch.get_rng_state()
    assert torch.equal(recorder(images, labels), labels)
    assert len(calls) == _WARM_UP + 1 + 1
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    plain = Normalised()
    plain.load_state_dict(
        {k: v for k, v in model.state_dict().items() if "running" not in k and "num_" not in k},
        strict=False,
    )
    torch.set_rng_state(state)
    plain(images).sum().backward()
    assert torch.equal(torch.get_rng_state(), after)
    for ours, theirs in zip(model.buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        assert ours.grad is None or torch.equal(ours.grad, theirs.grad)


# On CUDA


CUDA = {"device": torch.device("cuda")}


@on_cuda
@pytest.mark.parametrize("backend", ["separate", "batch", "channels", "vmap"])
@pytest.mark.parametrize("network", ["mlp2", "jocor"])
def test_on_cuda_a_population_trains_as_on_the_cpu(backend, network):
    task = digits(f"digits,{network}", train=64, epochs=1, **SGD)
    runs = together(task, closed(), backend=backend, **CUDA)
    for run, own in zip(runs, together(task, closed(), backend=backend), strict=True):
        alike(run.model.cpu() and run, own, 1e-2)
        assert run.curve[-1].accuracy == pytest.approx(own.curve[-1].accuracy, abs=0.03)


@on_cuda
@pytest.mark.parametrize("make", [Normalised, dropping_out])
def test_on_cuda_graphs_give_what_plain_passes_give(monkeypatch, make):
    with_network(monkeypatch, make)
    options = {"backend": "batch", "stop": {3: [0]}, **CUDA}
    runs = together(digits(**SGD), closed(), **options)
    monkeypatch.setattr(Recorder, "__call__", lambda self, *batch: self._run(*batch))
    for run, own in zip(runs, together(digits(**SGD), closed(), **options), strict=True):
        alike(run, own, 1e-4)


@on_cuda
def test_on_cuda_global_random_numbers_stay(monkeypatch):
    with_network(monkeypatch, dropping_out)
    torch.cuda.manual_seed(1)
    before = torch.cuda.get_rng_state()
    together(digits(**SGD), closed(), **CUDA)
    assert torch.equal(torch.cuda.get_rng_state(), before)


@on_cuda
def test_on_cuda_groups_wait_in_main_memory(monkeypatch):

    task = digits("digits,jocor", train=64, epochs=1, **SGD)
    options = {"backend": "channels", "stop": {1: [0, 2]}, **CUDA}
    usual = together(task, [*closed(), taylor(eta=3.0)], **options)
    monkeypatch.setattr(train_module, "fitting_size", lambda *_: 2)
    for run, own in zip(
        together(task, [*closed(), taylor(eta=3.0)], **options), usual, strict=True
    ):
        run.model.cpu(), own.model.cpu()
        alike(run, own, 1e-2)

"""Which backend of training is built, verified, timed, and remembered."""

import copy
import json
import logging

import pytest
import torch
from torch import nn

from optuna_robustloss.tasks.models import build_model
from optuna_robustloss.training.population import backend as backends
from optuna_robustloss.training.population.backend import build, fastest_backend, verified_backends
from optuna_robustloss.training.population.fusion import Fused, NotFusableError
from optuna_robustloss.training.population.population import Single
from optuna_robustloss.training.population.vmapped import Vmapped
from training.tiny import (
    ADAM,
    CPU,
    Normalised,
    closed,
    digits,
    dropping_out,
    same,
    together,
    with_network,
)

pytestmark = pytest.mark.integration  # trains networks


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache, in memory and on disk."""
    monkeypatch.setattr(backends, "_known", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "optuna-robustloss" / "backends.json"


@pytest.fixture
def measured(monkeypatch):
    """What was measured; the answer is always vmap."""
    counts = []
    monkeypatch.setattr(backends, "_measure", lambda m, t, count, d: counts.append(count) or "vmap")
    return counts


def network(name="mlp2"):
    return build_model(name, num_classes=10, image_shape=(1, 8, 8))


class Own(nn.Module):
    """A parameter of its own: no fused layer knows it, ``vmap`` does."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(64))
        self.head = nn.Linear(64, 10)

    def forward(self, images):
        return self.head(images.flatten(1) * self.scale)


class Branching(Own):
    """Its course depends on values: that is for no population."""

    def forward(self, images):
        out = super().forward(images)
        return out if out.detach().sum().item() > 0 else 2 * out


# Building


def test_each_backend_builds_its_population_from_copies():
    networks = [network(), network(), network()]
    before = [[w.clone() for w in n.state_dict().values()] for n in networks]
    for backend, kind in (("batch", Fused), ("channels", Fused), ("vmap", Vmapped)):
        population = build(backend, networks)
        assert type(population) is kind
        assert population.size == 3
        for parameter in population.parameters():
            parameter.data.zero_()
    single = build("separate", networks[:1])
    assert type(single) is Single
    next(single.parameters()).data.zero_()
    assert all(same(b, n.state_dict().values()) for b, n in zip(before, networks, strict=True))


def test_an_unknown_backend_is_an_error():
    with pytest.raises(ValueError, match="built one by one, got 2"):
        build("separate", [network()] * 2)
    with pytest.raises(ValueError, match=r"backend must be one of .*'vmap'.*got 'fused'"):
        build("fused", [network()] * 2)
    with pytest.raises(NotFusableError, match="scale"):
        build("batch", [Own()] * 2)


def test_a_single_network_does_not_shrink():
    model = network()
    single = Single(model)
    assert single.network(0) is model
    weights = [w.clone() for w in model.state_dict().values()]
    single.keep([0])
    assert same(weights, model.state_dict().values())


# Verifying


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (network(), ["channels", "batch"]),
        (Normalised(), ["channels", "batch"]),
        (dropping_out(), ["channels", "batch"]),
        (Own(), ["vmap"]),
        (Branching(), []),
    ],
    ids=["mlp", "convolutions", "dropout", "own parameter", "branching"],
)
def test_backends_that_compute_what_the_networks_do_are_verified(model, expected, caplog):
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(1)
    state = torch.get_rng_state()
    with caplog.at_level(logging.INFO, backends.__name__):
        assert verified_backends(model, digits()) == expected
    assert torch.equal(torch.get_rng_state(), state)
    assert same(before.values(), model.state_dict().values())
    said = [record for record in caplog.records if record.name == backends.__name__]
    assert len(said) == {2: 0, 1: 2, 0: 4}[len(expected)]
    if "channels" not in expected:
        assert "digits/mlp2" in caplog.text or "mlp2 cannot be fused (channels)" in caplog.text
        assert "scale" in caplog.text
    assert [r.getMessage() for r in said if r.levelno == logging.WARNING] == (
        [] if expected else ["mlp2 cannot be fused: its networks are trained one after another"]
    )


def test_a_network_too_large_to_be_verified_is_not(monkeypatch, caplog):
    monkeypatch.setattr(backends, "free_bytes", lambda device: 1000)
    assert verified_backends(network(), digits()) == []
    assert "too large to be verified" in caplog.text


# Measuring


def slow(monkeypatch, seconds, tried):
    """Steps take ``seconds`` by backend, whatever they do."""
    build_ = backends.build

    class Clocked(backends._Trial):
        def run(self):
            super().run()
            backend = tried[-1] if not hasattr(self, "backend") else self.backend
            self.backend, self.best = backend, seconds[backend] * self.size

    def noted(backend, networks):
        tried.append(backend)
        return build_(backend, networks)

    monkeypatch.setattr(backends, "build", noted)
    monkeypatch.setattr(backends, "_Trial", Clocked)
    monkeypatch.setattr(backends, "_TRIAL_SECONDS", 0.0)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({"separate": 0.003, "channels": 0.002, "batch": 0.001}, "batch"),
        ({"separate": 0.003, "channels": 0.001, "batch": 0.002}, "channels"),
        ({"separate": 0.001, "channels": 0.002, "batch": 0.003}, "separate"),
        ({"separate": 0.003, "channels": 0.0029, "batch": 0.0028}, "separate"),
    ],
    ids=["batch", "channels", "separate", "hardly faster"],
)
@pytest.mark.usefixtures("cache")
def test_the_fastest_is_taken_if_it_is_faster_by_a_margin(monkeypatch, seconds, expected):
    monkeypatch.setattr(backends, "verify", lambda *_: None)
    slow(monkeypatch, seconds, [])
    assert fastest_backend(network(), digits(), 3, CPU) == expected


@pytest.mark.usefixtures("cache")
def test_a_backend_that_is_not_verified_is_not_timed(monkeypatch):
    def verify(make, model, images):
        if make.args == ("batch",):
            raise NotFusableError("wrong")

    tried = []
    monkeypatch.setattr(backends, "verify", verify)
    slow(monkeypatch, {"separate": 0.003, "channels": 0.002, "batch": 0.001}, tried)
    assert fastest_backend(network(), digits(), 3, CPU) == "channels"
    assert tried == ["separate", "channels"]


@pytest.mark.usefixtures("cache")
def test_a_backend_that_fails_in_its_trial_is_left_out(monkeypatch, caplog):
    """More memory than there is, or what a network does under autocast only."""

    class Failing(backends._Trial):
        def run(self):
            if self.size > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            super().run()

    monkeypatch.setattr(backends, "_Trial", Failing)
    assert fastest_backend(network(), digits(), 3, CPU) == "separate"
    assert "CUDA out of memory" in caplog.text


@pytest.mark.usefixtures("cache")
def test_long_steps_and_single_networks_are_trained_separately(monkeypatch):
    tried = []
    slow(monkeypatch, {"separate": 1.0, "channels": 0.002, "batch": 0.001}, tried)
    assert fastest_backend(network(), digits(), 3, CPU) == "separate"
    monkeypatch.setattr(backends, "fitting_size", lambda *_: 1)
    assert fastest_backend(network(), digits(batch_size=8), 3, CPU) == "separate"
    assert tried == ["separate"] * 2


@pytest.mark.parametrize("make", [network, Normalised, Own, Branching])
@pytest.mark.usefixtures("cache")
def test_choosing_changes_neither_random_numbers_nor_the_network(monkeypatch, make):
    monkeypatch.setattr(backends, "_TRIAL_SECONDS", 0.01)
    model = make()
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(1)
    state = torch.get_rng_state()
    backend = fastest_backend(
        model, digits(optimizer="adam", momentum=0, precision="bfloat16"), 3, CPU
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert same(before.values(), model.state_dict().values())
    assert all(p.grad is None for p in model.parameters())
    assert backend in ("separate", "channels", "batch", "vmap")


@pytest.mark.usefixtures("cache")
def test_a_network_that_no_backend_fuses_is_trained_separately(monkeypatch):
    with_network(monkeypatch, Branching)
    runs = together(digits(**ADAM), closed(), backend=None)
    own = together(digits(**ADAM), closed(), backend="separate")
    assert [run.curve for run in runs] == [run.curve for run in own]


# The cache


def test_one_network_needs_no_measurement(cache, measured):
    assert fastest_backend(network(), digits(), 1, CPU) == "separate"
    assert measured == []
    assert not cache.exists()


def test_each_network_batch_and_optimiser_is_measured_once(cache, measured):
    tasks = [digits(), digits(batch_size=8), digits("digits,mlp3"), digits(**ADAM)]
    tasks.append(digits(precision="bfloat16"))
    for _ in range(2):
        for task in tasks:
            assert fastest_backend(network(), task, 3, CPU) == "vmap"
    assert len(measured) == 5
    for count in (4, 12, 8, 100):  # no more than eight are tried
        fastest_backend(network(), tasks[0], count, CPU)
    assert measured[5:] == [4, 12]
    assert len(json.loads(cache.read_text())) == 7


def test_the_next_process_reads_what_was_measured(cache, measured, monkeypatch):
    fastest_backend(network(), digits(), 3, CPU)
    monkeypatch.setattr(backends, "_known", {})
    assert fastest_backend(network(), digits(), 3, CPU) == "vmap"
    assert measured == [3]
    cache.unlink()
    monkeypatch.setattr(backends, "_known", {})
    fastest_backend(network(), digits(), 3, CPU)
    assert measured == [3, 3]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"x": "fly", "y": ["batch"]}', b"\xff"])
def test_a_damaged_cache_is_replaced_by_new_timings(cache, measured, content):
    cache.parent.mkdir()
    cache.write_bytes(content)
    assert fastest_backend(network(), digits(), 3, CPU) == "vmap"
    assert list(json.loads(cache.read_text()).values()) == ["vmap"]


def test_timings_of_other_processes_stay_in_the_cache(cache, measured):
    cache.parent.mkdir()
    cache.write_text('{"another network": "batch"}')
    fastest_backend(network(), digits(), 3, CPU)
    assert sorted(json.loads(cache.read_text()).values()) == ["batch", "vmap"]
    assert [path.name for path in cache.parent.iterdir()] == ["backends.json"]


def test_a_cache_that_cannot_be_written_is_no_error(cache, measured):
    cache.parent.write_text("a file where the folder should be")
    for _ in range(2):
        assert fastest_backend(network(), digits(), 3, CPU) == "vmap"
    assert measured == [3]

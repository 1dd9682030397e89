"""Settings of the methods by data set and noise, as their authors have them."""

import math
from types import SimpleNamespace

import pytest
from training.tiny import digits

from optuna_robustloss.benchmark import methods
from optuna_robustloss.benchmark.methods import make_criterion, train_methods
from optuna_robustloss.benchmark.settings import PUBLISHED, method_values, published_cell
from optuna_robustloss.benchmark.spec import BenchmarkSpec
from optuna_robustloss.benchmark.study import create_benchmark, open_benchmark
from optuna_robustloss.distributed.storage import open_storage
from optuna_robustloss.losses import ELRLoss, ScaledLoss
from optuna_robustloss.losses.registry import make_loss
from optuna_robustloss.tasks.spec import TaskSpec

#: SCE's log 0 in its authors' code.
LOG_ZERO = math.log(1e-4)


def task(text, *, channels=None, classes=None):
    """What settings depend on, without the data."""
    spec = TaskSpec.parse(text)
    grey = spec.dataset in ("mnist", "kmnist", "digits", "fashion-mnist")
    return SimpleNamespace(
        spec=spec,
        image_shape=(channels or (1 if grey else 3), 32, 32),
        num_classes=classes or (100 if spec.dataset == "cifar100" else 10),
        train=SimpleNamespace(labels=range(50)),
    )


@pytest.mark.parametrize(
    ("method", "text", "expected"),
    [
        ("sce", "mnist,mlp2,symmetric:0.8", {"alpha": 0.01, "beta": 1, "A": LOG_ZERO}),
        ("sce", "cifar10,vgg11,symmetric:0.8", {"alpha": 0.1, "beta": 1, "A": LOG_ZERO}),
        ("nce", "mnist,mlp2", {"scale": 10}),
        ("nce+rce", "mnist,mlp2", {"alpha": 1, "beta": 10}),
        ("nce+mae", "kmnist,mlp2", {"alpha": 1, "beta": 10}),
        ("nce+mae", "cifar100,vgg11", {"alpha": 10, "beta": 1}),
        ("agce", "digits,mlp2", {"a": 4, "q": 0.2}),
        ("nce+agce", "mnist,mlp2", {"alpha": 0, "beta": 1, "a": 4, "q": 0.2}),
        ("anl-ce", "mnist,mlp2", {"alpha": 1, "beta": 1, "l1": 1e-6}),
        ("eps-softmax", "cifar100,vgg11,symmetric:0.8", {"alpha": 0.0075, "beta": 1, "m": 1e4}),
        ("eps-softmax", "cifar100,vgg11", {"alpha": 0.1, "beta": 1, "m": 1e4}),
        ("eps-softmax", "cifar10,vgg11,asymmetric:0.4", {"alpha": 0.02, "beta": 5, "m": 1e3}),
        (
            *("eps-softmax", "cifar100,vgg11,asymmetric-blocks:0.38"),
            {"alpha": 0.004, "beta": 1, "m": 1e2},
        ),
        ("eps-softmax", "mnist,mlp2,pair-flip:0.4", {"alpha": 0.02, "beta": 5, "m": 1e3}),
        ("elr", "cifar10,vgg11,symmetric:0.4", {"beta": 0.7, "lam": 3}),
        ("elr", "cifar10,vgg11,asymmetric:0.4", {"beta": 0.9, "lam": 1}),
        ("elr", "cifar100,vgg11,asymmetric:0.4", {"beta": 0.9, "lam": 7}),
        ("elr", "cifar10,vgg11,human:worse_label", {"beta": 0.7, "lam": 3}),
        ("jocor", "mnist,mlp2,symmetric:0.5", {"co_lambda": 0.1}),
        ("jocor", "cifar10,jocor-code,symmetric:0.8", {"co_lambda": 0.65}),
        ("jocor", "cifar10,jocor-code,asymmetric:0.4", {"co_lambda": 0.9}),
        ("jocor", "cifar100,jocor-code,symmetric:0.2", {"co_lambda": 0.85}),
    ],
)
def test_published_settings(method, text, expected):
    assert published_cell(method, task(text)).values == expected


def test_data_sets_without_a_row_take_that_of_their_channels_or_classes():
    own = "clothing1m,resnet18,given"
    assert method_values("anl-ce", task(own), "published")["l1"] == 5e-5
    assert method_values("gce", task(own), "published") == {"q": 0.6}
    many = task("kmnist,mlp2", classes=100)
    assert method_values("sce", many, "published") == {"alpha": 6, "beta": 0.1, "A": LOG_ZERO}
    assert method_values("ce", many, "published") is None


def test_every_cell_has_a_source_and_makes_its_method():
    for name, rows in PUBLISHED.items():
        assert {"cifar10", "cifar100"} <= rows.keys()
        for dataset, cells in rows.items():
            for cell in cells:
                assert "/" in cell.source.split()[0]
                if name not in methods.PROCEDURES:
                    noise = f",{cell.noise}:{cell.rate or 0.4}" if cell.noise else ""
                    data = f"{dataset},resnet18{noise}"
                    loss = make_criterion(name, task(data))
                    loss = loss.criterion if isinstance(loss, ScaledLoss) else loss
                    found = {key: getattr(loss, key) for key in cell.values if key != "scale"}
                    fitting = published_cell(name, task(data)).values
                    assert found == {k: v for k, v in fitting.items() if k != "scale"}


def test_cifar10_everywhere_is_what_the_classes_have():
    for name in ("sce", "nce", "nce+rce", "agce", "anl-ce", "eps-softmax", "gce"):
        for classes in (10, 100):
            own = make_criterion(name, task("mnist,mlp2", classes=classes), settings="cifar10")
            assert repr(vars(own)) == repr(vars(make_loss(name, classes)))
    assert method_values("jocor", task("mnist,mlp2"), "cifar10") == {"co_lambda": 0.9}
    elr = make_criterion("elr", task("mnist,mlp2,asymmetric:0.4"), settings="cifar10")
    assert isinstance(elr, ELRLoss)
    assert (elr.beta, elr.lam) == (0.7, 3)


def test_scales_multiply():
    loss = make_criterion("nce*0.5", task("mnist,mlp2"), 0.1)
    assert loss.scale == pytest.approx(0.5)
    loss = make_criterion("sce*0.5", task("mnist,mlp2"))
    assert (loss.scale, loss.criterion.alpha) == (0.5, 0.01)


def test_methods_that_change_the_training_get_their_settings(monkeypatch):
    seen = []

    def jocor(task, *, seed, epochs, scale, **options):
        seen.append(options["co_lambda"])

    monkeypatch.setitem(methods.PROCEDURES, "jocor", jocor)
    for settings in ("published", "cifar10"):
        train_methods(digits(), [("jocor", 1.0)], seed=0, settings=settings)
    assert seen == [0.1, 0.9]


VALUES = {
    "name": "tiny",
    "methods": ["ce"],
    "tasks": [{"datasets": "digits", "architectures": "mlp2", "noise": "none"}],
}


def test_a_study_from_before_the_key_has_the_former_settings(tmp_path):
    """Its hash stays, and a spec with published settings does not continue it."""
    former = BenchmarkSpec.from_values(VALUES | {"settings": "cifar10"}, "tiny.yaml")
    published = BenchmarkSpec.from_values(VALUES, "tiny.yaml")
    assert published.settings == "published"
    assert former.hash == "c3cf06d3529d9557"  # as before there was such a key
    assert published.hash != former.hash
    storage = open_storage(f"sqlite:///{tmp_path}/tiny.db", create=True)
    study = create_benchmark(former, storage, "tiny")
    (key,) = (k for k, v in study.user_attrs.items() if isinstance(v, dict) and "values" in v)
    stored = study.user_attrs[key]
    values = {k: v for k, v in stored["values"].items() if k != "settings"}
    study.set_user_attr(key, stored | {"values": values})
    assert open_benchmark(storage, "tiny")[1] == former
    create_benchmark(former, storage, "tiny")
    with pytest.raises(ValueError, match="settings: 'cifar10' / 'published'"):
        create_benchmark(published, storage, "tiny")

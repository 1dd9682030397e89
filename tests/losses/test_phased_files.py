"""Losses with phases as JSON files: any losses of the package as parts, and no other code."""

import inspect
import json

import pytest
import torch
from torch import nn

import optuna_robustloss.losses as public
from losses.reference import random_labels, random_logits, random_theta
from losses.test_files import changed
from optuna_robustloss.losses import (
    MSE_THETA,
    ClassificationLoss,
    ELRLoss,
    ForwardCorrectionLoss,
    GCELoss,
    MAELoss,
    PhasedLoss,
    ScaledLoss,
    SCELoss,
    TaylorLoss,
    load_loss,
)
from optuna_robustloss.losses.registry import make_loss
from optuna_robustloss.losses.serialization import CLASSES

TAYLOR = TaylorLoss(random_theta(0).tolist(), 10, eta=0.6, cross_entropy_weight=0.1, variable="log")


def examples():
    """A loss of each class that a file may name, with nothing left at its default."""
    made = [TAYLOR, ScaledLoss(ScaledLoss(GCELoss(q=0.3), 0.5), 3.0)]
    made.append(nn.CrossEntropyLoss(label_smoothing=0.2))
    for kind in CLASSES:
        if kind not in {type(loss) for loss in made}:
            numbers = {
                name: p.default * 0.9
                for name, p in inspect.signature(kind).parameters.items()
                if isinstance(p.default, float)
            }
            made.append(kind(**numbers))
    return made


def values(criterion):
    """At three moments of the training, for hard and soft labels."""
    logits, labels = random_logits(1, 20, 10), random_labels(2, 10, 20)
    found = []
    for progress in (0.0, 0.1, 1.0):
        criterion.progress = progress
        soft = random_logits(3, 20, 10).softmax(-1)
        found += [criterion(logits, labels), criterion(logits, soft)]
    return torch.stack(found)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "loss.json"
    PhasedLoss(
        SCELoss(alpha=0.3),
        ScaledLoss(TAYLOR, 0.5),
        switch=0.08,
        width=0.05,
        total_steps=448,
        provenance={"study": "two phases"},
    ).save(path)
    return path


# --- Round trip ---


@pytest.mark.parametrize("part", examples(), ids=lambda part: type(part).__name__)
def test_a_loaded_loss_is_the_saved_one(tmp_path, part):
    saved = PhasedLoss(part, ScaledLoss(part, 2.0), switch=0.08, width=0.04)
    saved.save(tmp_path / "loss.json")
    loaded = load_loss(tmp_path / "loss.json")
    assert type(loaded) is PhasedLoss
    assert torch.equal(values(loaded), values(saved))
    assert str(loaded) == str(saved)
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "loss.json").read_bytes()


def test_what_is_not_a_part_comes_back_too(path):
    loaded = load_loss(path)
    assert (loaded.switch, loaded.width, loaded.total_steps) == (0.08, 0.05, 448)
    assert loaded.provenance == {"study": "two phases"}
    assert int(loaded.steps) == 0


def test_every_loss_of_the_package_has_a_place_in_a_file():
    """But for those that are made for one training set, and for what has phases itself."""
    others = {ELRLoss, ForwardCorrectionLoss, PhasedLoss, ClassificationLoss}
    kinds = [getattr(public, name) for name in public.__all__]
    losses = {k for k in kinds if inspect.isclass(k) and issubclass(k, nn.Module)}
    assert losses - others == set(CLASSES) - {nn.CrossEntropyLoss}


def test_the_task_at_hand_decides_classes_steps_and_reduction(path):
    weight = torch.arange(4.0)
    loaded = load_loss(path, 4, total_steps=100, reduction="none", weight=weight, ignore_index=3)
    assert loaded.total_steps == 100
    assert loaded.late.criterion.num_classes == 4
    for part in (loaded.early, loaded.late.criterion):
        assert (part.reduction, part.ignore_index) == ("none", 3)
        assert torch.equal(part.weight, weight)
    assert loaded(torch.zeros(7, 4), torch.arange(7) % 4).shape == (7,)


def test_a_name_of_a_file_is_a_loss_for_tables(path):
    scaled = make_loss(f"{path}*0.5", 10)
    assert isinstance(scaled.criterion, PhasedLoss)


def test_the_zoo_may_hold_losses_with_phases(path, monkeypatch):
    from importlib import resources

    monkeypatch.setattr(resources, "files", lambda package: path.parent)
    assert isinstance(load_loss("loss"), PhasedLoss)


def test_the_file_is_plain_json_for_people_to_read(path):
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert (stored["format"], stored["version"]) == ("optuna-robustloss/phased-loss", 1)
    assert stored["early"] == {"class": "SCELoss", "alpha": 0.3, "beta": 1.0, "A": -4.0}
    assert stored["late"]["class"] == "ScaledLoss"
    assert stored["late"]["criterion"]["theta"] == random_theta(0).tolist()


# --- What has no place in a file ---


class Mine(GCELoss):
    """A class of somebody else."""


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Mine(), "a loss of the class Mine has no place in a file; those that have: TaylorLoss, "),
        (ScaledLoss(Mine(), 2.0), "the class Mine has no place"),
        (ELRLoss(5, 10), "the class ELRLoss has no place"),
        (ScaledLoss(GCELoss(), torch.tensor(2.0)), "scale of ScaledLoss is a Tensor"),
    ],
)
def test_an_unknown_loss_is_refused_when_it_is_saved(tmp_path, part, message):
    with pytest.raises(ValueError, match=message):
        PhasedLoss(MAELoss(), part, switch=0.1).save(tmp_path / "loss.json")
    assert list(tmp_path.iterdir()) == []


# --- Damaged files ---


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"format": "other"}, "is not a loss file"),
        ({"version": 2}, "version 2 .* reads version 1: update"),
        ({"switch": ...}, "missing or wrong switch"),
        ({"switch": "0.1", "width": None}, "missing or wrong switch, width"),
        ({"switch": 2}, "switch is a share of the steps"),
        ({"switch": float("nan")}, "missing or wrong switch"),
        ({"total_steps": 4.5}, "missing or wrong total_steps"),
        ({"total_steps": True}, "missing or wrong total_steps"),
        ({"total_steps": 0}, "total_steps must be at least 1"),
        ({"provenance": []}, "missing or wrong provenance"),
        ({"early": ...}, "early is not a loss: it lacks the name of its class"),
        ({"early": [1]}, "early is not a loss"),
        ({"early": {"class": 3}}, "early is not a loss"),
        ({"early": {"class": "Mine"}}, "early is a loss of the unknown class 'Mine'; known: "),
        ({"early": {"class": "Module"}}, "unknown class 'Module'"),
        ({"early": {"class": "os.system", "command": "x"}}, "unknown class 'os.system'"),
        ({"early": {"class": "PhasedLoss"}}, "unknown class 'PhasedLoss'"),
        ({"early": {"class": "GCELoss", "p": 0.7}}, "early: GCELoss has no argument 'p'.*'q'"),
        ({"early": {"class": "GCELoss", "reduction": "sum"}}, "no argument 'reduction'"),
        ({"early": {"class": "GCELoss", "q": 7}}, "early: no GCELoss .*: q must be in"),
        ({"early": {"class": "GCELoss", "q": "x"}}, "early: no GCELoss can be made of"),
        ({"early": {"class": "GCELoss", "q": float("inf")}}, "early: q of GCELoss is no plain"),
        ({"early": {"class": "GCELoss", "q": [0.7]}}, "early: q of GCELoss is no plain value"),
        ({"early": {"class": "ScaledLoss", "scale": 2}}, "early: no ScaledLoss .*criterion"),
        (
            {"early": {"class": "ScaledLoss", "scale": 2, "criterion": {"class": "Mine"}}},
            r"early\.criterion is a loss of the unknown class 'Mine'",
        ),
        ({"early": {"class": "TaylorLoss", "eta": 2}}, "early: missing or wrong theta, num_cl"),
    ],
)
def test_damage_is_named_with_file_and_field(path, fields, named):
    changed(path, **fields)
    with pytest.raises(ValueError, match=rf"(?s)loss\.json.*{named}") as error:
        load_loss(path)
    assert "\n" not in str(error.value)


def test_a_number_in_the_place_of_a_loss_is_no_loss(path):
    changed(path, early={"class": "ScaledLoss", "scale": 2.0, "criterion": 3})
    with pytest.raises(ValueError, match=r"early\.criterion is not a loss"):
        load_loss(path)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_a_truncated_file(path, part):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ValueError, match=r"loss\.json is not a JSON file, or is damaged"):
        load_loss(path)


def test_each_kind_is_read_as_what_it_is(path, tmp_path):
    with pytest.raises(ValueError, match=r"of another kind, '.*phased-loss': read it by load_loss"):
        TaylorLoss.load(path)
    TaylorLoss(MSE_THETA, 10).save(tmp_path / "one.json")
    with pytest.raises(ValueError, match=r"of another kind, '.*taylor-loss': read it by load_loss"):
        PhasedLoss.load(tmp_path / "one.json")


def test_an_option_of_one_loss_is_no_option_of_two(path):
    with pytest.raises(ValueError, match="eta is no option of a loss with phases; it has: total_"):
        load_loss(path, eta=2.0)

"""Losses as JSON files: what is saved comes back, and damage is named."""

import inspect
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import optuna_robustloss.losses as public
from losses.conftest import PROVENANCE, phased, taylor
from losses.reference import eq4_of_logits, random_labels, random_logits, random_theta
from optuna_robustloss.losses import (
    MAE_THETA,
    ClassificationLoss,
    ELRLoss,
    ForwardCorrectionLoss,
    GCELoss,
    MAELoss,
    PhasedLoss,
    ScaledLoss,
    TaylorLoss,
    canonical,
    load_loss,
    loss_range,
    save_loss,
)
from optuna_robustloss.losses.serialization import CLASSES


def example(kind):
    """A loss of each class that a file may name, with no number left at its default."""
    if kind is TaylorLoss:
        return taylor()
    if kind is PhasedLoss:
        return phased(total_steps=448)
    if kind is ScaledLoss:
        return ScaledLoss(ScaledLoss(GCELoss(q=0.3), 0.5), 3.0)
    defaults = {n: p.default for n, p in inspect.signature(kind).parameters.items()}
    numbers = {n: 0.9 * value for n, value in defaults.items() if isinstance(value, float)}
    return kind(**numbers or {"label_smoothing": 0.2} if kind is nn.CrossEntropyLoss else numbers)


# --- Round trip ---


@pytest.mark.parametrize("kind", CLASSES.values(), ids=CLASSES)
def test_a_loaded_loss_is_the_saved_one(tmp_path, kind):
    saved, path, again = example(kind), tmp_path / "loss.json", tmp_path / "again.json"
    save_loss(saved, path, provenance=PROVENANCE)
    loaded = load_loss(path)
    assert type(loaded) is kind
    assert str(loaded) == str(saved)
    assert loaded.provenance == PROVENANCE
    logits, labels = random_logits(1, 20, 10), random_labels(2, 10, 20)
    for target in (labels, random_logits(3, 20, 10).softmax(-1)):
        assert torch.equal(loaded(logits, target), saved(logits, target))
    save_loss(load_loss(path), again)
    assert again.read_bytes() == path.read_bytes()


def test_every_loss_but_those_of_one_training_set_can_be_saved():
    kinds = [getattr(public, name) for name in public.__all__]
    losses = {k for k in kinds if inspect.isclass(k) and issubclass(k, nn.Module)}
    others = {ELRLoss, ForwardCorrectionLoss, ClassificationLoss}
    assert losses - others == set(CLASSES.values()) - {nn.CrossEntropyLoss}


def test_numbers_come_back_to_the_last_digit(path):
    loss = load_loss(str(path))
    assert loss.theta == tuple(random_theta(0).tolist())
    assert (loss.num_classes, loss.eta, loss.cross_entropy_weight) == (10, 0.63, 0.03)
    assert loss.variable == "log"
    save_loss(TaylorLoss(MAE_THETA, 3, eta=None), path)
    assert load_loss(path).eta is None


def test_a_loss_with_phases_begins_anew(phased_path):
    loaded = load_loss(phased_path)
    assert (loaded.switch, loaded.width, loaded.total_steps) == (0.08, 0.05, 448)
    assert int(loaded.steps) == 0
    assert loaded.provenance == {}


def test_options_replace_what_is_stored(path):
    weight = torch.arange(10.0)
    loss = load_loss(
        path, eta=5.0, cross_entropy_weight=0.0, reduction="sum", weight=weight, ignore_index=3
    )
    assert (loss.eta, loss.cross_entropy_weight) == (5.0, 0.0)
    assert (loss.reduction, loss.ignore_index) == ("sum", 3)
    assert torch.equal(loss.weight, weight)
    assert loss.variable == "log"  # not overridden


def test_the_task_options_reach_every_part(phased_path):
    weight = torch.arange(4.0)
    options = {"reduction": "none", "weight": weight, "ignore_index": 3}
    loaded = load_loss(phased_path, 4, total_steps=100, **options)
    assert loaded.total_steps == 100
    assert loaded.late.criterion.num_classes == 4
    for part in (loaded.early, loaded.late.criterion):
        assert (part.reduction, part.ignore_index) == ("none", 3)
        assert torch.equal(part.weight, weight)
    assert loaded(torch.zeros(7, 4), torch.arange(7) % 4).shape == (7,)


def test_an_unknown_option_is_refused_with_the_known_ones(path, phased_path):
    with pytest.raises(ValueError, match=r"eta is not an option of PhasedLoss .* width, total_st"):
        load_loss(phased_path, eta=2.0)
    with pytest.raises(ValueError, match="total_steps is not an option of TaylorLoss"):
        load_loss(path, total_steps=3)
    with pytest.raises(ValueError, match=r"loss\.json: reduction must be one of"):
        load_loss(path, reduction="average")


def test_another_number_of_classes_is_normalised_anew(path):
    logits, target = random_logits(1, 20, 4), random_labels(2, 4, 20)
    loss = load_loss(path, 4, cross_entropy_weight=0.0, reduction="none")
    f_min, f_max = loss_range(random_theta(0), 4, variable="log")
    f = eq4_of_logits(logits, target, random_theta(0), "log")
    assert loss.num_classes == 4
    expected = 0.63 * (f - f_min) / (f_max - f_min)
    torch.testing.assert_close(loss(logits, target), expected, rtol=1e-5, atol=1e-5)


def test_a_wrong_number_of_classes_does_not_fall_back_to_the_stored_one(path):
    for num_classes in (0, 1, -3):
        with pytest.raises(ValueError, match=f"at least 2, got {num_classes}"):
            load_loss(path, num_classes)


def test_the_file_is_plain_json(path, phased_path):
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert list(stored)[:3] == ["format", "version", "class"]
    assert (stored["format"], stored["version"]) == ("optuna-robustloss/loss", 1)
    assert stored["theta"] == random_theta(0).tolist()
    assert stored["canonical"] == canonical(random_theta(0), variable="log").tolist()
    stored = json.loads(phased_path.read_text(encoding="utf-8"))
    assert stored["early"] == {"class": "SCELoss", "alpha": 0.3, "beta": 1.0, "A": -4.0}
    assert stored["late"]["criterion"]["theta"] == random_theta(0).tolist()


# --- Losses that cannot be saved ---


class Mine(GCELoss):
    """A class that this package does not know."""


def test_an_unknown_loss_is_refused_before_a_file_is_written(tmp_path):
    same_name = type("GCELoss", (GCELoss,), {})
    for loss, message in (
        (Mine(), "Cannot save Mine: only TaylorLoss, PhasedLoss, ScaledLoss, .* can be written"),
        (ScaledLoss(Mine(), 2.0), "Cannot save Mine"),
        (PhasedLoss(MAELoss(), Mine(), switch=0.1), "Cannot save Mine"),
        (ELRLoss(5, 10), "Cannot save ELRLoss"),
        (same_name(), "Cannot save GCELoss"),
        (ScaledLoss(GCELoss(), torch.tensor(2.0)), "scale must be a finite number, got tensor"),
    ):
        with pytest.raises(ValueError, match=message):
            save_loss(loss, tmp_path / "loss.json")
    assert list(tmp_path.iterdir()) == []


def test_a_provenance_that_json_cannot_hold_leaves_the_earlier_file(path):
    before = path.read_bytes()
    for provenance in ({"study": object()}, {"score": float("nan")}):
        with pytest.raises(ValueError, match=r"Cannot save TaylorLoss to .*loss\.json: "):
            save_loss(taylor(), path, provenance=provenance)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("step", ["write_text", "replace"])
def test_a_full_disk_leaves_the_earlier_file(path, step, monkeypatch):
    before = path.read_bytes()
    whole = getattr(Path, step)

    def fails(self, *arguments, **options):
        if step == "write_text":
            whole(self, arguments[0][:20], **options)
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, step, fails)
    with pytest.raises(OSError, match="no space left"):
        save_loss(taylor(), path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_saving_replaces_the_earlier_file(path):
    save_loss(GCELoss(), path)
    assert isinstance(load_loss(path), GCELoss)
    assert list(path.parent.iterdir()) == [path]

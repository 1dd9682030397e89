"""The losses shipped with the package, however many there are."""

import json
from importlib import resources
from pathlib import Path

import pytest
import torch

from optuna_robustloss.losses import MAE_THETA, MSE_THETA, TaylorLoss, list_losses, load_loss
from optuna_robustloss.losses import zoo as zoo_package

FOLDER = Path(zoo_package.__file__).parent


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """Another folder in the place of the zoo, with two losses in it."""
    TaylorLoss(MSE_THETA, 10, eta=4.0).save(tmp_path / "squared-error.json")
    TaylorLoss(MAE_THETA, 10, provenance={"provisional": True}).save(
        tmp_path / "absolute-error.json"
    )
    (tmp_path / "notes.txt").write_text("not a loss")
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    return tmp_path


# --- What is shipped ---


def test_every_file_is_listed():
    assert list_losses() == sorted(path.stem for path in FOLDER.glob("*.json"))


def test_every_loss_loads_for_any_number_of_classes():
    for name in list_losses():
        for num_classes in (2, 10, 1000):
            loss = load_loss(name, num_classes)
            logits = torch.randn(4, num_classes, requires_grad=True)
            loss(logits, torch.tensor([0, 1, 0, 1])).backward()
            assert logits.grad.isfinite().all(), name
            assert logits.grad.any(), name


def test_every_loss_brings_its_evidence():
    for name in list_losses():
        assert load_loss(name).provenance, name


def test_every_file_is_as_the_package_writes_it(tmp_path):
    for name in list_losses():
        load_loss(name).save(tmp_path / "again.json")
        again = json.loads((tmp_path / "again.json").read_text(encoding="utf-8"))
        shipped = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        assert again.pop("canonical") == pytest.approx(shipped.pop("canonical")), name
        assert again == shipped, name


# --- Names and paths ---


def test_losses_are_listed_by_name(zoo):
    assert list_losses() == ["absolute-error", "squared-error"]


def test_a_loss_loads_by_its_name(zoo):
    loss = load_loss("absolute-error")
    assert (loss.theta, loss.num_classes) == (MAE_THETA, 10)
    assert loss.provenance == {"provisional": True}


def test_classes_and_options_are_those_of_the_task_at_hand(zoo):
    loss = load_loss("squared-error", 3, reduction="none")
    assert (loss.num_classes, loss.eta, loss.reduction) == (3, 4.0, "none")
    assert load_loss("squared-error", eta=0.5).eta == 0.5


def test_a_path_loads_a_file_from_anywhere(tmp_path):
    TaylorLoss(MAE_THETA, 3).save(tmp_path / "mine.json")
    assert load_loss(tmp_path / "mine.json").theta == MAE_THETA
    assert load_loss(str(tmp_path / "mine.json"), 7).num_classes == 7


def test_a_missing_path_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"mine\.json"):
        load_loss(tmp_path / "mine.json")


def test_an_unknown_name_is_answered_with_the_known_ones(zoo):
    with pytest.raises(ValueError, match=r"'absolute-eror', did you mean 'absolute-error'\?") as e:
        load_loss("absolute-eror")
    assert "absolute-error, squared-error" in str(e.value)
    assert "must end in .json" in str(e.value)


def test_an_unknown_name_in_the_shipped_zoo():
    with pytest.raises(ValueError, match=r"there is no loss 'no such loss'.*The zoo has: ") as e:
        load_loss("no such loss")
    assert all(name in str(e.value) for name in list_losses() or ["nothing yet"])

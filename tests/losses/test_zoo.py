"""The losses shipped with the package, however many there are."""

import json
from importlib import resources
from pathlib import Path

import pytest
import torch

from optuna_robustloss.losses import (
    MAE_THETA,
    MSE_THETA,
    TaylorLoss,
    list_losses,
    load_loss,
    save_loss,
    zoo,
)

FOLDER = Path(zoo.__file__).parent


@pytest.fixture
def two_losses(tmp_path, monkeypatch):
    """Replace the folder of the zoo by one with two losses in it."""
    save_loss(TaylorLoss(MSE_THETA, 10, eta=4.0), tmp_path / "squared-error.json")
    absolute = TaylorLoss(MAE_THETA, 10)
    save_loss(absolute, tmp_path / "absolute-error.json", provenance={"provisional": True})
    (tmp_path / "notes.txt").write_text("not a loss")
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)


def test_every_shipped_loss_works_for_any_number_of_classes_and_brings_its_evidence():
    assert list_losses() == sorted(path.stem for path in FOLDER.glob("*.json"))
    for name in list_losses():
        assert load_loss(name).provenance, name
        for num_classes in (2, 10, 1000):
            lr = {"lr": 0.01} if name.startswith("adaptive") else {}
            loss = load_loss(name, num_classes, **lr)
            logits = torch.randn(4, num_classes, requires_grad=True)
            loss(logits, torch.tensor([0, 1, 0, 1])).backward()
            assert logits.grad.isfinite().all(), name
            assert logits.grad.any(), name


def test_every_file_is_as_the_package_writes_it(tmp_path):
    for name in list_losses():
        save_loss(load_loss(name), tmp_path / "again.json")
        again = json.loads((tmp_path / "again.json").read_text(encoding="utf-8"))
        shipped = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        for part in ("early", "late"):
            if part in again:
                shipped[part]["canonical"] = pytest.approx(shipped[part]["canonical"])
        if "canonical" in again:
            assert again.pop("canonical") == pytest.approx(shipped.pop("canonical")), name
        assert again == shipped, name


@pytest.mark.usefixtures("two_losses")
def test_a_loss_loads_by_its_name():
    assert list_losses() == ["absolute-error", "squared-error"]
    loss = load_loss("absolute-error")
    assert (loss.theta, loss.num_classes) == (MAE_THETA, 10)
    assert loss.provenance == {"provisional": True}
    loss = load_loss("squared-error", 3, reduction="none")
    assert (loss.num_classes, loss.eta, loss.reduction) == (3, 4.0, "none")


def test_a_path_loads_a_file_from_anywhere(tmp_path):
    save_loss(TaylorLoss(MAE_THETA, 3), tmp_path / "mine.json")
    assert load_loss(str(tmp_path / "mine.json"), 7).num_classes == 7
    (tmp_path / "mine.json").rename(tmp_path / "mine")
    assert load_loss(tmp_path / "mine").theta == MAE_THETA


@pytest.mark.usefixtures("two_losses")
def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'absolute-eror', did you mean 'absolute-error'\?") as e:
        load_loss("absolute-eror")
    assert "absolute-error, squared-error" in str(e.value)
    assert "must end in .json" in str(e.value)

"""Losses as JSON files: what is saved comes back, and damage is named."""

import json
import pickle
from pathlib import Path

import pytest
import torch

from losses.reference import eq4_of_logits, random_labels, random_logits, random_theta
from optuna_robustloss.losses import MAE_THETA, TaylorLoss, canonical, load_loss, loss_range

PROVENANCE = {
    "study": "map-then-symmetric",
    "tasks": ["mnist/m4", "mnist/s8"],
    "provisional": True,
    "score": {"mean": 0.861, "seeds": 3, "note": None},
    "by": "Ünal",
}


@pytest.fixture
def path(tmp_path):
    """A loss with nothing left at its default."""
    path = tmp_path / "loss.json"
    TaylorLoss(
        random_theta(0),
        10,
        eta=0.63,
        cross_entropy_weight=0.03,
        variable="log",
        provenance=PROVENANCE,
    ).save(path)
    return path


def changed(path, **fields):
    """Overwrite fields of the file; ``...`` removes one."""
    stored = json.loads(path.read_text(encoding="utf-8")) | fields
    kept = {name: value for name, value in stored.items() if value is not ...}
    path.write_text(json.dumps(kept), encoding="utf-8")


# --- Round trip ---


def test_a_loaded_loss_is_the_saved_one(path):
    loss = TaylorLoss.load(path)
    assert loss.theta == tuple(random_theta(0).tolist())  # to the last digit
    assert (loss.num_classes, loss.eta, loss.cross_entropy_weight, loss.variable) == (
        10,
        0.63,
        0.03,
        "log",
    )
    assert loss.provenance == PROVENANCE
    logits, target = random_logits(1, 20, 10).float(), random_labels(2, 10, 20)
    saved = TaylorLoss(
        random_theta(0).tolist(), 10, eta=0.63, cross_entropy_weight=0.03, variable="log"
    )
    assert torch.equal(loss(logits, target), saved(logits, target))


def test_saving_what_was_loaded_writes_the_same_file(path, tmp_path):
    TaylorLoss.load(path).save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_paths_may_be_text(path):
    assert TaylorLoss.load(str(path)).theta == load_loss(str(path)).theta == load_loss(path).theta


def test_a_loss_without_eta_stays_without(tmp_path):
    TaylorLoss(MAE_THETA, 3, eta=None).save(tmp_path / "loss.json")
    assert TaylorLoss.load(tmp_path / "loss.json").eta is None


def test_options_take_the_place_of_stored_values(path):
    weight = torch.arange(10.0)
    loss = TaylorLoss.load(
        path, eta=5.0, cross_entropy_weight=0.0, reduction="sum", weight=weight, ignore_index=3
    )
    assert (loss.eta, loss.cross_entropy_weight) == (5.0, 0.0)
    assert (loss.reduction, loss.ignore_index) == ("sum", 3)
    assert torch.equal(loss.weight, weight)
    assert loss.variable == "log"  # not overridden


def test_another_number_of_classes_is_normalised_anew(path):
    logits, target = random_logits(1, 20, 4), random_labels(2, 4, 20)
    loss = TaylorLoss.load(path, 4, cross_entropy_weight=0.0, reduction="none")
    f_min, f_max = loss_range(random_theta(0), 4, variable="log")
    f = eq4_of_logits(logits, target, random_theta(0), "log")
    expected = 0.63 * (f - f_min) / (f_max - f_min)
    assert loss.num_classes == 4
    torch.testing.assert_close(loss(logits, target), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_classes", [0, 1, -3])
def test_a_wrong_number_of_classes_does_not_fall_back_to_the_stored_one(path, num_classes):
    with pytest.raises(ValueError, match=f"at least 2, got {num_classes}"):
        TaylorLoss.load(path, num_classes)


def test_the_file_is_plain_json_for_people_to_read(path):
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert stored["format"] == "optuna-robustloss/taylor-loss"
    assert stored["version"] == 1
    assert stored["theta"] == random_theta(0).tolist()
    assert stored["canonical"] == pytest.approx(canonical(random_theta(0), variable="log").tolist())


# --- Damaged files ---


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a JSON file"),
        (b"theta: [1, 2]", "not a JSON file"),
        (b"\x80\x04\x95\xff", "not a JSON file"),
        (b'{"theta": ' + b"9" * 5000 + b"}", "not a JSON file"),
        (b"[]", "not a loss file"),
        (b'"loss"', "not a loss file"),
        (b"{}", "not a loss file"),
    ],
    ids=["empty", "YAML", "binary", "endless integer", "list", "text", "no format"],
)
def test_a_file_of_another_kind(path, content, message):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"loss\.json is {message}"):
        TaylorLoss.load(path)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file(path, part):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ValueError, match=r"loss\.json is not a JSON file, or is damaged"):
        TaylorLoss.load(path)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"format": "other/taylor-loss"}, '"format"'),
        ({"version": 2}, "version 2 .* reads version 1: update"),
        ({"version": ...}, "version None"),
        ({"theta": ...}, "theta"),
        ({"theta": [0.5] * 11}, "theta"),
        ({"theta": [0.5] * 11 + [float("nan")]}, "theta"),
        ({"theta": [0.5] * 11 + [float("inf")]}, "theta"),
        ({"theta": [0.5] * 11 + [10**400]}, "theta"),
        ({"theta": [0.5] * 11 + ["0.5"]}, "theta"),
        ({"theta": [0.5] * 11 + [True]}, "theta"),
        ({"theta": [[0.5] * 12]}, "theta"),
        ({"theta": "MAE"}, "theta"),
        ({"num_classes": ...}, "num_classes"),
        ({"num_classes": 10.0}, "num_classes"),
        ({"num_classes": 1}, "num_classes"),
        ({"num_classes": True}, "num_classes"),
        ({"eta": ...}, "eta"),
        ({"eta": 0}, "eta"),
        ({"eta": float("nan")}, "eta"),
        ({"eta": "2"}, "eta"),
        ({"cross_entropy_weight": "0.1"}, "cross_entropy_weight"),
        ({"cross_entropy_weight": -0.1}, "cross_entropy_weight"),
        ({"variable": "logit"}, "variable"),
        ({"variable": ["log"]}, "variable"),
        ({"provenance": "a study"}, "provenance"),
        ({"theta": ..., "eta": -1}, "theta, eta"),
    ],
)
def test_a_damaged_field_is_named_with_the_file(path, fields, named):
    changed(path, **fields)
    with pytest.raises(ValueError, match=rf"(?s)loss\.json.*{named}"):
        TaylorLoss.load(path)


def test_fields_that_may_be_left_out(path):
    changed(path, cross_entropy_weight=..., variable=..., provenance=..., canonical=...)
    loss = TaylorLoss.load(path)
    assert (loss.cross_entropy_weight, loss.variable, loss.provenance) == (0.0, "probability", {})


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no loss file .*nowhere\.json"):
        TaylorLoss.load(tmp_path / "nowhere.json")


def test_a_pickle_is_refused_and_not_run(path):
    class Payload:
        def __reduce__(self):
            return Path.touch, (path.with_name("executed"),)

    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ValueError, match="not a JSON file"):
        TaylorLoss.load(path)
    assert not path.with_name("executed").exists()


# --- Failing saves ---


@pytest.mark.parametrize(
    ("provenance", "error"),
    [({"study": object()}, TypeError), ({"score": float("nan")}, ValueError)],
    ids=["not serialisable", "NaN"],
)
def test_what_json_cannot_hold_leaves_the_earlier_file(path, provenance, error):
    before = path.read_bytes()
    with pytest.raises(error):
        TaylorLoss(MAE_THETA, 10, provenance=provenance).save(path)
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
        TaylorLoss(MAE_THETA, 10).save(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_new_file_that_fails_is_not_there(tmp_path):
    with pytest.raises(TypeError):
        TaylorLoss(MAE_THETA, 10, provenance={"study": object()}).save(tmp_path / "loss.json")
    assert list(tmp_path.iterdir()) == []


def test_saving_replaces_the_earlier_file(path):
    TaylorLoss(MAE_THETA, 3).save(path)
    assert TaylorLoss.load(path).theta == MAE_THETA
    assert list(path.parent.iterdir()) == [path]

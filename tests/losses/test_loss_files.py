"""Loss files that are damaged or hostile: one error that names the file and the field."""

import json
import pickle
from pathlib import Path

import pytest

from optuna_robustloss.losses import load_loss


def changed(path, **fields):
    """Overwrite fields of the file; ``...`` removes one."""
    stored = json.loads(path.read_text(encoding="utf-8")) | fields
    kept = {name: value for name, value in stored.items() if value is not ...}
    path.write_text(json.dumps(kept), encoding="utf-8")


def test_a_file_of_another_kind(path):
    for content, message in (
        (b"", "not a JSON file"),
        (b"theta: [1, 2]", "not a JSON file"),
        (b"\x80\x04\x95\xff", "not a JSON file"),
        (b'{"theta": ' + b"9" * 5000 + b"}", "not a JSON file"),
        (path.read_bytes()[:-20], "not a JSON file, or is damaged"),
        (b"[]", "not a loss file"),
        (b'"loss"', "not a loss file"),
        (b"{}", "not a loss file"),
        (b'{"format": ["optuna-robustloss/loss"]}', "not a loss file"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"loss\.json is {message}"):
            load_loss(path)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"format": "other/taylor-loss"}, '"format"'),
        ({"version": 2}, "version 2 .* reads version 1: update"),
        ({"version": ...}, "version None"),
        ({"class": ...}, "is not a loss: its class is missing"),
        ({"class": "Mine"}, "unknown class 'Mine'; known: TaylorLoss, "),
        ({"class": "os.system"}, r"unknown class 'os\.system'"),
        ({"class": "MAELoss"}, "MAELoss has no argument"),
        ({"theta": ...}, "theta"),
        ({"theta": [0.5] * 11}, "theta must have 12 numbers"),
        ({"theta": [0.5] * 11 + [float("nan")]}, "theta of TaylorLoss must be a list of numbers"),
        ({"theta": [0.5] * 11 + [10**400]}, "theta"),
        ({"theta": [0.5] * 11 + [True]}, "theta"),
        ({"theta": [[0.5] * 12]}, "theta"),
        ({"theta": "MAE"}, "theta"),
        ({"num_classes": ...}, "num_classes"),
        ({"num_classes": 10.0}, "num_classes of TaylorLoss must be an integer, got 10.0"),
        ({"num_classes": 1}, "num_classes"),
        ({"num_classes": True}, "num_classes"),
        ({"eta": 0}, "eta"),
        ({"eta": "2"}, "eta of TaylorLoss must be a finite number or null, got '2'"),
        ({"cross_entropy_weight": -0.1}, "cross_entropy_weight"),
        ({"variable": "logit"}, r"variable .* one of \('probability', 'log'\), got 'logit'"),
        ({"variable": ["log"]}, "variable"),
        ({"provenance": "a study"}, "provenance"),
        ({"reduction": "sum"}, "no argument 'reduction'"),
    ],
)
def test_a_damaged_field_is_named_with_the_file(path, fields, named):
    changed(path, **fields)
    with pytest.raises(ValueError, match=rf"loss\.json.*{named}") as error:
        load_loss(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"switch": ...}, "switch"),
        ({"switch": "0.1"}, "switch of PhasedLoss must be a finite number"),
        ({"switch": 2}, "switch is a share of the steps"),
        ({"total_steps": 4.5}, "total_steps of PhasedLoss must be an integer or null, got 4.5"),
        ({"total_steps": 0}, "total_steps must be at least 1"),
        ({"early": ...}, "early"),
        ({"early": [1]}, "early is not a loss"),
        ({"early": {"class": 3}}, "early is not a loss"),
        ({"early": {"class": "Mine"}}, "early has the unknown class 'Mine'; known: "),
        ({"early": {"class": "GCELoss", "p": 0.7}}, "early: GCELoss has no argument 'p'.*: q"),
        ({"early": {"class": "GCELoss", "q": 7}}, "early: q must be in"),
        ({"early": {"class": "GCELoss", "q": float("inf")}}, "early: q of GCELoss must be a fin"),
        ({"early": {"class": "ScaledLoss", "scale": 2}}, "early.*criterion"),
        ({"late": {"class": "ScaledLoss", "scale": 2, "criterion": 3}}, "late, criterion is not"),
    ],
)
def test_a_damaged_part_is_named_with_its_place(phased_path, fields, named):
    changed(phased_path, **fields)
    with pytest.raises(ValueError, match=rf"phased\.json.*{named}") as error:
        load_loss(phased_path)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no loss file .*nowhere\.json"):
        load_loss(tmp_path / "nowhere.json")


def test_a_pickle_is_refused_and_not_run(path):
    class Payload:
        def __reduce__(self):
            return Path.touch, (path.with_name("executed"),)

    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ValueError, match="not a JSON file"):
        load_loss(path)
    assert not path.with_name("executed").exists()

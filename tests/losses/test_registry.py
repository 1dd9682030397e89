"""Losses by a short name: what the command line and the tables understand."""

from functools import partial

import pytest
import torch
from torch import nn

from losses.reference import random_labels, random_logits
from optuna_robustloss.losses import (
    MAE_THETA,
    MSE_THETA,
    AGCELoss,
    ANLCELoss,
    BootstrapLoss,
    EpsilonSoftmaxLoss,
    GCELoss,
    JALCELoss,
    LabelSmoothingLoss,
    MAELoss,
    NCEandAGCELoss,
    NCEandMAELoss,
    NCEandRCELoss,
    NCELoss,
    PhasedLoss,
    ScaledLoss,
    SCELoss,
    TaylorLoss,
    list_losses,
    list_methods,
    make_loss,
    save_loss,
)


def value(loss):
    return loss(random_logits(0, 20, 10), random_labels(1, 10, 20))


KINDS = {
    "ce": nn.CrossEntropyLoss,
    "mae": MAELoss,
    "gce": GCELoss,
    "sce": SCELoss,
    "bootstrap-soft": BootstrapLoss,
    "bootstrap-hard": partial(BootstrapLoss, hard=True),
    "label-smoothing": LabelSmoothingLoss,
    "nce": NCELoss,
    "nce+rce": NCEandRCELoss,
    "nce+mae": NCEandMAELoss,
    "agce": AGCELoss,
    "nce+agce": NCEandAGCELoss,
    "anl-ce": ANLCELoss,
    "jal-ce": JALCELoss,
    "eps-softmax": EpsilonSoftmaxLoss,
}


def test_published_losses_have_the_settings_of_their_classes():
    for name, kind in KINDS.items():
        assert str(make_loss(name, 10)) == str(kind()), name
        torch.testing.assert_close(value(make_loss(name, 10)), value(kind()))


def test_every_method_is_listed():
    assert list_methods() == [*KINDS, "sce-then-confirm", "ce-then-mae"]
    assert isinstance(make_loss("sce-then-confirm", 10), PhasedLoss)


def test_published_settings_are_those_of_the_papers():
    assert make_loss("gce", 10).q == 0.7
    sce = make_loss("sce", 10)
    assert (sce.alpha, sce.beta, sce.A) == (0.1, 1.0, -4.0)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("sce", {"alpha": 6.0, "beta": 0.1, "A": -4.0}),
        ("nce+rce", {"alpha": 10.0, "beta": 0.1}),
        ("nce+mae", {"alpha": 10.0, "beta": 1.0}),
        ("agce", {"a": 0.6, "q": 0.6}),
        ("nce+agce", {"alpha": 10.0, "beta": 0.1, "a": 1.8, "q": 3.0}),
        ("anl-ce", {"alpha": 10.0, "beta": 1.0, "l1": 5e-7}),
        ("jal-ce", {"alpha": 5.0, "beta": 1.0, "a": 20.0, "l1": 5e-6}),
        ("eps-softmax", {"alpha": 0.03, "beta": 1.0, "m": 1e4}),
    ],
)
def test_a_hundred_classes_have_the_settings_of_cifar100(name, settings):
    loss = make_loss(name, 100)
    assert {key: getattr(loss, key) for key in settings} == settings
    assert type(make_loss(name, 99)) is type(loss)
    assert str(make_loss(name, 99)) == str(make_loss(name, 10))


def test_a_scaled_loss_keeps_its_l1_term():
    assert make_loss("anl-ce*0.2", 10).l1 == pytest.approx(1e-5)
    assert make_loss("anl-ce*0.2", 100).l1 == pytest.approx(1e-7)


@pytest.mark.parametrize(("name", "theta"), [("mae", MAE_THETA), ("mse", MSE_THETA)])
def test_an_at_sign_gives_a_taylor_loss_its_range(name, theta):
    loss = make_loss(f"{name}@7.5", 4)
    assert isinstance(loss, TaylorLoss)
    assert (loss.theta, loss.eta, loss.num_classes) == (theta, 7.5, 4)


@pytest.mark.parametrize("name", ["ce", "gce", "mae@10", "nce+rce", "eps-softmax"])
def test_a_star_scales_any_loss(name):
    scaled = make_loss(f"{name}*0.2", 10)
    assert isinstance(scaled, ScaledLoss)
    torch.testing.assert_close(value(scaled), 0.2 * value(make_loss(name, 10)))


def test_a_path_is_a_loss_file(tmp_path):
    path = tmp_path / "mine.json"
    save_loss(TaylorLoss(MSE_THETA, 10, eta=3.0), path)
    loss = make_loss(str(path), 4)
    assert (loss.theta, loss.eta, loss.num_classes) == (MSE_THETA, 3.0, 4)
    torch.testing.assert_close(
        value(make_loss(f"{path}*2", 10)), 2 * value(TaylorLoss(MSE_THETA, 10, eta=3.0))
    )


def test_every_loss_of_the_zoo_has_its_name():
    for name in list_losses():
        assert isinstance(make_loss(name, 10), TaylorLoss | PhasedLoss), name


def test_a_folder_with_an_asterisk_is_still_a_path(tmp_path):
    path = tmp_path / "runs*best" / "mine.json"
    path.parent.mkdir()
    save_loss(TaylorLoss(MSE_THETA, 10), path)
    assert make_loss(str(path), 10).theta == MSE_THETA


def test_an_unknown_name_names_the_close_one_and_all_others():
    with pytest.raises(
        ValueError, match=r"unknown loss 'gec', did you mean 'gce'.*ce, mae, .*@ETA"
    ):
        make_loss("gec", 10)


@pytest.mark.parametrize("name", ["", "CE", "gce@2", "@3"])
def test_what_is_no_name_is_an_error(name):
    with pytest.raises(ValueError, match="unknown loss"):
        make_loss(name, 10)


@pytest.mark.parametrize("name", ["ce*", "ce*two", "mae@", "mae@ten"])
def test_what_is_no_number_is_an_error(name):
    with pytest.raises(ValueError, match="is not a number"):
        make_loss(name, 10)


@pytest.mark.parametrize("name", ["ce*0", "ce*-1", "ce*nan", "mae@0", "mae@inf"])
def test_scales_and_ranges_are_positive(name):
    with pytest.raises(ValueError, match="must be a positive number"):
        make_loss(name, 10)


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no loss file"):
        make_loss(str(tmp_path / "none.json"), 10)

import logging
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torchvision.datasets import KMNIST

from optuna_robustloss.tasks.data import data_names, load_data
from optuna_robustloss.tasks.images import DataSet, TensorImages

CPU = torch.device("cpu")
needs_data = pytest.mark.skipif(
    "OPTUNA_ROBUSTLOSS_DATA" not in os.environ,
    reason="set OPTUNA_ROBUSTLOSS_DATA to a folder with the data sets in torchvision's layout",
)

DIGITS_CHECKSUMS = [4101482302, 2101423832, 1593167591, 3985846351]


def images_of(source):
    batches = source.batches(torch.arange(len(source)), 1000, device=CPU)
    return torch.cat([images for _, images in batches])


def pixels_of(source):
    scaled = images_of(source) * source.std[0] + source.mean[0]
    return (scaled * 255).round().to(torch.uint8)


# The registry


def test_every_name_is_listed():
    assert {"digits", "mnist", "kmnist", "fashion-mnist", "cifar10", "cifar100", "clothing1m"} == {
        *data_names()
    }


def test_the_same_name_and_root_give_the_same_object(tmp_path):
    assert load_data("digits", root=tmp_path) is load_data("digits", root=str(tmp_path))


def test_the_root_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("OPTUNA_ROBUSTLOSS_DATA", str(tmp_path))
    assert load_data("digits") is load_data("digits", root=tmp_path)
    monkeypatch.delenv("OPTUNA_ROBUSTLOSS_DATA")
    monkeypatch.chdir(tmp_path)
    assert load_data("digits") is load_data("digits", root=Path("data"))


@pytest.mark.parametrize(
    ("name", "hint"), [("MNIST", "'mnist'"), ("fashion_mnist", "'fashion-mnist'")]
)
def test_an_unknown_name_brings_the_close_ones(name, hint):
    with pytest.raises(ValueError, match=f"unknown data set '{name}'; did you mean .*{hint}"):
        load_data(name)


def test_an_unknown_name_brings_all_names():
    with pytest.raises(ValueError, match=r"known: cifar10, .*mnist, folder:<path>, <path>\.npz"):
        load_data("elephants")


@pytest.mark.parametrize("name", ["mnist", "kmnist", "fashion-mnist", "cifar10", "cifar100"])
def test_missing_data_is_one_clear_error(name, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        load_data(name, root=tmp_path)
    for part in (name, str(tmp_path), "OPTUNA_ROBUSTLOSS_DATA", "download=True", "--download"):
        assert part in str(caught.value)


# Digits


def test_digits_are_1297_training_and_500_test_images():
    data = load_data("digits")
    assert (len(data.train), len(data.test)) == (1297, 500)
    assert data.train.shape == (1, 8, 8)
    assert data.num_classes == 10
    assert data.train_labels.dtype == torch.int64
    assert data.class_names == tuple("0123456789")


def test_digits_are_all_of_scikit_learns_each_once():
    data = load_data("digits")
    ours = torch.cat([pixels_of(data.train), pixels_of(data.test)]).flatten(1)
    theirs = (torch.from_numpy(load_digits().images) * 255 / 16).round().to(torch.uint8).flatten(1)
    assert sorted(map(tuple, ours.tolist())) == sorted(map(tuple, theirs.tolist()))


def test_the_digits_split_is_stratified():
    data = load_data("digits")
    train = data.train_labels.bincount() / 1297
    test = data.test_labels.bincount() / 500
    torch.testing.assert_close(train, test, atol=0.002, rtol=0)


def test_the_digits_split_never_changes():
    data = load_data("digits")
    parts = [pixels_of(data.train), data.train_labels, pixels_of(data.test), data.test_labels]
    assert [zlib.crc32(part.numpy().tobytes()) for part in parts] == DIGITS_CHECKSUMS


def test_digits_are_normalised_by_the_training_images():
    data = load_data("digits")
    images = images_of(data.train)
    assert images.mean().item() == pytest.approx(0, abs=1e-5)
    assert images.std().item() == pytest.approx(1, abs=1e-3)
    assert data.test.mean == data.train.mean


# Torchvision


@needs_data
@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [("mnist", (1, 28, 28), 10), ("cifar10", (3, 32, 32), 10), ("cifar100", (3, 32, 32), 100)],
)
def test_real_data(name, shape, classes):
    data = load_data(name)
    assert data.train.shape == data.test.shape == shape
    assert len(data.test) == 10_000
    assert len(data.test_labels.unique()) == data.num_classes == len(data.class_names) == classes
    ((_, images),) = data.train.batches(torch.arange(5000), 5000, device=CPU)
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(shape[0]), atol=0.05, rtol=0)
    torch.testing.assert_close(images.std((0, 2, 3)), torch.ones(shape[0]), atol=0.05, rtol=0)


def write_idx(file, array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    file.write_bytes(header + array.tobytes())


def test_a_partial_copy_is_read_with_a_warning(tmp_path, caplog):
    raw = tmp_path / "KMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 30), ("t10k", 20)):
        values = np.random.default_rng(count).integers(0, 256, (count, 28, 28), np.uint8)
        write_idx(raw / f"{part}-images-idx3-ubyte", values)
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10)

    with caplog.at_level(logging.WARNING):
        data = load_data("kmnist", root=tmp_path)

    assert "partial copy: 30 of 60000 training images" in caplog.text
    assert (len(data.train), len(data.test)) == (30, 20)
    assert data.train_labels.tolist() == [*range(10)] * 3
    assert data.class_names == tuple(KMNIST.classes)
    raw_pixels = np.random.default_rng(20).integers(0, 256, (20, 28, 28), np.uint8)
    assert torch.equal(pixels_of(data.test)[:, 0], torch.from_numpy(raw_pixels))


def test_a_damaged_copy_is_one_clear_error(tmp_path):
    raw = tmp_path / "KMNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        write_idx(raw / f"{part}-images-idx3-ubyte", np.zeros((20, 28, 28), np.uint8))
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(20, dtype=np.uint8) % 10)
    for damaged in ("train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        whole = (raw / damaged).read_bytes()
        for content in (whole[:-1], b"", b"hello", whole[:3] + b"\xff" + whole[4:]):
            (raw / damaged).write_bytes(content)
            with pytest.raises((ValueError, FileNotFoundError), match=r"kmnist.*--download"):
                load_data("kmnist", root=tmp_path)
        (raw / damaged).write_bytes(whole)


# The type


def tiny(**changes):
    images = TensorImages(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), [0.0], [1.0])
    labels = torch.tensor([0, 1, 1])
    fields = {
        "name": "tiny",
        "num_classes": 2,
        "train": images,
        "train_labels": labels,
        "test": images,
        "test_labels": labels,
    }
    return DataSet(**(fields | changes))


def test_labels_must_fit_the_images():
    for changes, message in [
        ({"train_labels": None}, "needs train_labels or train_noisy_labels"),
        ({"train_labels": torch.tensor([0, 1])}, r"train_labels must be int64 \(3,\).* \(2,\)"),
        ({"test_labels": torch.zeros(3)}, r"test_labels must be int64 .*float32"),
        ({"test_labels": torch.tensor([0, 1, 2])}, r"test_labels must be in 0\.\.1, got 0\.\.2"),
        ({"train_noisy_labels": torch.tensor([0, -1, 1])}, r"train_noisy_labels .* got -1\.\.1"),
        ({"validation_labels": torch.tensor([0])}, "both images and labels, or neither"),
        ({"class_names": ("one",)}, "1 class_names for 2 classes"),
        ({"num_classes": 1}, r"must be in 2\.\.10000, got 1"),
        ({"num_classes": 60_000}, r"must be in 2\.\.10000, got 60000"),
    ]:
        assert tiny().num_classes == 2
        with pytest.raises(ValueError, match=f"tiny: .*{message}"):
            tiny(**changes)

import logging
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import KMNIST

from optuna_robustloss.tasks.data import DataSet, data_names, load_data
from optuna_robustloss.tasks.images import TensorImages

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


# A user's own arrays


def arrays(shape=(6, 5), **changes):
    draw = np.random.default_rng(0)
    own = {
        "x_train": draw.integers(0, 256, (6, *shape), np.uint8),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": draw.integers(0, 256, (4, *shape), np.uint8),
        "y_test": np.array([0, 2, 2, 1], np.uint8),
    }
    own |= changes
    return {name: array for name, array in own.items() if array is not None}


def save(folder, **own):
    np.savez(folder / "own.npz", **own)
    return str(folder / "own.npz")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((6, 5), (1, 6, 5)), ((6, 5, 1), (1, 6, 5)), ((6, 5, 3), (3, 6, 5)), ((3, 6, 5), (3, 6, 5))],
)
def test_npz_layouts(tmp_path, shape, expected):
    own = arrays(shape)
    data = load_data(save(tmp_path, **own))
    assert data.train.shape == data.test.shape == expected
    image = torch.from_numpy(own["x_train"][4])
    if image.ndim == 2:
        image = image[None]
    elif shape[-1] in (1, 3):
        image = image.permute(2, 0, 1)
    ((_, read),) = data.train.batches(torch.tensor([4]), 1, device=CPU)
    mean, std = (torch.tensor(m).view(-1, 1, 1) for m in (data.train.mean, data.train.std))
    torch.testing.assert_close(read[0] * std + mean, image / 255)


def test_npz_labels(tmp_path):
    data = load_data(save(tmp_path, **arrays(y_train_noisy=np.array([1, 1, 2, 0, 0, 2]))))
    assert data.num_classes == 3
    assert data.train_labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.train_noisy_labels.tolist() == [1, 1, 2, 0, 0, 2]
    assert data.test_labels.tolist() == [0, 2, 2, 1]
    assert data.test_labels.dtype == torch.int64


def test_npz_without_noisy_labels(tmp_path):
    assert load_data(save(tmp_path, **arrays())).train_noisy_labels is None


def test_an_ambiguous_layout_is_read_as_channels_last_and_says_so(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        data = load_data(save(tmp_path, **arrays((3, 8, 1))))
    assert data.train.shape == (1, 3, 8)
    assert "read as (N, H, W, ch)" in caplog.text


BIG = np.full(6, 3)
BAD_ARRAYS = {
    "float images": ({"x_train": np.zeros((6, 6, 5))}, "x_train must be uint8 .* float64"),
    "two channels": ({"x_test": np.zeros((4, 6, 5, 2), np.uint8)}, r"x_test must be \(N, H, W\)"),
    "flat images": ({"x_train": np.zeros((6, 30), np.uint8)}, r"x_train must be .*\(6, 30\)"),
    "no images": ({"x_test": np.zeros((0, 6, 5), np.uint8)}, "x_test must be .* not empty"),
    "two shapes": ({"x_test": np.zeros((4, 5, 5), np.uint8)}, ".* one shape"),
    "too few labels": ({"y_train": np.array([0, 1])}, r"y_train .* shape \(6,\).* got \(2,\)"),
    "one-hot labels": ({"y_test": np.eye(4, dtype=int)}, r"y_test .* got \(4, 4\)"),
    "float labels": ({"y_test": np.zeros(4)}, "y_test must hold integers, got float64"),
    "negative label": ({"y_test": np.array([0, -1, 0, 0])}, "y_test must not be negative, got -1"),
    "unseen label": ({"y_test": np.array([0, 3, 0, 0])}, r"y_test holds the label 3.* 0\.\.2"),
    "noisy label": ({"y_train_noisy": BIG}, r"y_train_noisy holds the label 3.* 0\.\.2"),
    "noisy length": ({"y_train_noisy": np.zeros(5, int)}, r"y_train_noisy .* shape \(6,\)"),
    "from one": ({"y_train": np.array([1, 2, 3, 1, 2, 3])}, "y_train .* every label .* 1 to 3"),
    "one class": ({"y_train": np.zeros(6, int)}, "y_train .* C at least 2"),
    "missing": ({"x_test": None, "y_test": None}, "x_test, y_test missing; expected"),
    "objects": ({"y_train": np.array([0, 1, None] * 2)}, "y_train must be a plain array"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_bad_arrays_are_named_with_the_file(tmp_path, changes, message):
    path = save(tmp_path, **arrays(**changes))
    with pytest.raises(ValueError, match=rf"own\.npz: {message}"):
        load_data(path)


def test_a_file_that_is_no_archive(tmp_path):
    (tmp_path / "own.npz").write_bytes(b"\x80\x04junk")
    with pytest.raises(ValueError, match=r"own\.npz: is no \.npz archive"):
        load_data(str(tmp_path / "own.npz"))
    with pytest.raises(FileNotFoundError, match=r"other\.npz does not exist"):
        load_data(str(tmp_path / "other.npz"))


# A user's own folder


def make_folder(root, train=("cat", "dog"), test=("cat", "dog")):
    for split, names, count in (("train", train, 3), ("test", test, 2)):
        for shade, name in enumerate(names):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                image = Image.new("RGB", (20, 20), (100 * shade, 0, 0))
                image.save(root / split / name / f"{index}.{'png' if index else 'jpg'}")
    return root


def test_an_image_folder(tmp_path):
    data = load_data(f"folder:{make_folder(tmp_path)}")
    assert data.class_names == ("cat", "dog")
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test_labels.tolist() == [0, 0, 1, 1]
    assert data.train.shape == (3, 224, 224)
    data.test.num_workers = 0
    ((_, images),) = data.test.batches(torch.arange(4), 4, device=CPU)
    red = images[:, 0].mean((1, 2)) * 0.229 + 0.485
    torch.testing.assert_close(red * 255, torch.tensor([0.0, 0, 100, 100]), atol=3, rtol=0)


def test_differing_classes_are_named(tmp_path):
    root = make_folder(tmp_path, train=("cat", "dog", "emu"), test=("cat", "dog", "fox"))
    with pytest.raises(ValueError, match=r"only in train/: \['emu'\], only in test/: \['fox'\]"):
        load_data(f"folder:{root}")


def test_broken_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train is not a folder; .*<path>/train/<class>"):
        load_data(f"folder:{tmp_path}")
    make_folder(tmp_path, train=("cat",), test=("cat",))
    with pytest.raises(ValueError, match="two or more class folders"):
        load_data(f"folder:{tmp_path}")
    for split in ("train", "test"):
        (tmp_path / split / "gnu").mkdir()
    with pytest.raises(FileNotFoundError, match=r"train: .*gnu"):
        load_data(f"folder:{tmp_path}")


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": None}, "needs train_labels or train_noisy_labels"),
        ({"train_labels": torch.tensor([0, 1])}, r"train_labels must be int64 \(3,\).* \(2,\)"),
        ({"test_labels": torch.zeros(3)}, r"test_labels must be int64 .*float32"),
        ({"test_labels": torch.tensor([0, 1, 2])}, r"test_labels must be in 0\.\.1, got 0\.\.2"),
        ({"train_noisy_labels": torch.tensor([0, -1, 1])}, r"train_noisy_labels .* got -1\.\.1"),
        ({"validation_labels": torch.tensor([0])}, "both images and labels, or neither"),
        ({"class_names": ("one",)}, "1 class_names for 2 classes"),
    ],
)
def test_labels_must_fit_the_images(changes, message):
    assert tiny().num_classes == 2
    with pytest.raises(ValueError, match=f"tiny: .*{message}"):
        tiny(**changes)

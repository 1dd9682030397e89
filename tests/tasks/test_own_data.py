"""Data of a user's own: an .npz of arrays, a folder of images."""

import io
import logging
import os
import warnings
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

import optuna_robustloss.tasks.arrays
from optuna_robustloss.tasks.data import load_data

CPU = torch.device("cpu")


def images_of(source):
    batches = source.batches(torch.arange(len(source)), 1000, device=CPU)
    return torch.cat([images for _, images in batches])


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
    "too few labels": (
        {"y_train": np.array([0, 1])},
        r"y_train must hold 6 labels .* got shape \(2,\)",
    ),
    "one-hot labels": (
        {"y_test": np.eye(4, dtype=int)},
        r"y_test must hold 4 labels .* got shape \(4, 4\)",
    ),
    "float labels": ({"y_test": np.zeros(4)}, "y_test must hold integers, got float64"),
    "negative label": (
        {"y_test": np.array([0, -1, 0, 0])},
        r"y_test must be in \[0, 3\), got -1 \(row 1\)",
    ),
    "unseen label": (
        {"y_test": np.array([0, 3, 0, 0])},
        r"y_test must be in \[0, 3\), got 3 \(row 1\)",
    ),
    "noisy label": ({"y_train_noisy": BIG}, r"y_train_noisy must be in \[0, 3\), got 3"),
    "noisy length": ({"y_train_noisy": np.zeros(5, int)}, r"y_train_noisy must hold 6 labels"),
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
    with pytest.raises(FileNotFoundError, match=r"no file .*other\.npz"):
        load_data(str(tmp_path / "other.npz"))


def bad_archive(path, values, **header):
    """Replace x_train by an array whose header says something else."""
    own = arrays()
    np.savez_compressed(path, **{name: own[name] for name in ("y_train", "x_test", "y_test")})
    file = io.BytesIO()
    shape = header.get("shape", (6, 6, 5))
    fields = {"descr": header.get("descr", "|u1"), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, fields)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x_train.npy", file.getvalue() + values)


def test_sizes_are_checked_before_anything_is_read(tmp_path, monkeypatch):
    path, right = tmp_path / "own.npz", bytes(6 * 6 * 5)
    huge = r"x_train is damaged or truncated: its header says .* \d+ bytes, and 180 are stored"
    for values, header, message in [
        (right, {"shape": (10**12, 1000, 1000)}, huge),
        (right, {"shape": (10**30, 6, 5)}, huge),
        (right[:-1], {}, "180 bytes, and 179 are stored"),
        (right + b"x", {}, "180 bytes, and 181 are stored"),
        (right, {"shape": (-6, -6, 5)}, "damaged"),
        (right, {"descr": "|O"}, "pickled Python objects, which are not loaded"),
        (right, {"descr": "<f8"}, "damaged or truncated"),
        (right, {"descr": [("a", "|u1")]}, r"x_train must be uint8"),
    ]:
        bad_archive(path, values, **header)
        with pytest.raises(ValueError, match=rf"own\.npz: .*{message}"):
            load_data(str(path))
    bad_archive(path, right)
    monkeypatch.setattr(optuna_robustloss.tasks.arrays, "memory_size", lambda: 100)
    with pytest.raises(ValueError, match="needs 0 GiB, more than the memory"):
        load_data(str(path))


def test_damaged_encrypted_and_doubled_members_are_named(tmp_path):
    path = tmp_path / "own.npz"
    x = np.random.default_rng(0).integers(0, 9, (80, 12, 12), dtype=np.uint8)
    own = {"x_train": x[:60], "y_train": np.arange(60) % 3, "x_test": x[60:]}
    own["y_test"] = np.arange(20) % 3
    for save in (np.savez, np.savez_compressed):
        save(path, **own)
        whole = path.read_bytes()
        path.write_bytes(whole[:200] + b"\xff" * 60 + whole[260:])
        with pytest.raises(ValueError, match=r"own\.npz: x_train (is damaged|must be a plain)"):
            load_data(str(path))
        flags = whole.rindex(b"PK\1\2") + 8
        path.write_bytes(whole[:flags] + b"\1" + whole[flags + 1 :])
        with pytest.raises(ValueError, match=r"own\.npz: y_test must be .*it is encrypted"):
            load_data(str(path))
        path.write_bytes(whole)
        with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
            warnings.simplefilter("ignore")
            archive.writestr("y_test.npy", b"")
        with pytest.raises(ValueError, match=r"own\.npz: y_test is stored twice"):
            load_data(str(path))


def test_unused_members_are_not_looked_at(tmp_path):
    path = save(tmp_path, **arrays(extra=np.array([None])))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("README.txt", b"hello")
    assert len(load_data(path).train) == 6


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


def test_hidden_names_are_neither_classes_nor_images(tmp_path):
    root = make_folder(tmp_path, ("cat", "dog", ".cache"), ("cat", "dog", ".cache", "__MACOSX"))
    (root / "train" / "cat" / "._0.png").write_bytes(b"\0\5\x16\7")
    (root / "train" / "cat" / ".thumbnails").mkdir()
    (root / "train" / "cat" / ".thumbnails" / "0.png").write_bytes(b"")
    (root / "train" / "cat" / "deep").mkdir()
    (root / "train" / "cat" / "deep" / "9.JPEG").write_bytes(b"")
    data = load_data(f"folder:{root}")
    assert data.class_names == ("cat", "dog")
    assert data.train_labels.tolist() == [0] * 4 + [1] * 3


def test_links_pipes_and_closed_folders_are_named(tmp_path):
    root = make_folder(tmp_path)
    odd = root / "train" / "cat" / "odd.png"
    for make, message in [
        (lambda: os.mkfifo(odd), r"odd\.png is no regular file"),
        (lambda: odd.symlink_to("nowhere"), r"odd\.png is no regular file or a broken link"),
        (lambda: odd.symlink_to(odd.name), r"odd\.png is no regular file or a broken link"),
        (lambda: odd.symlink_to(".."), r"is a link to a folder that is listed already"),
        (lambda: odd.symlink_to("."), r"is a link to a folder that is listed already"),
    ]:
        make()
        with pytest.raises(ValueError, match=message):
            load_data(f"folder:{root}")
        odd.unlink()
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        load_data(f"folder:{'x' * 5000}")


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
    with pytest.raises(ValueError, match=r"train/gnu: holds no image; .*\.jpg, .*\.webp"):
        load_data(f"folder:{tmp_path}")

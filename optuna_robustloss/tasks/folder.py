"""A user's own images: a folder with one sub-folder per class, or an .npz archive of arrays.

    path/train/<class>/*.jpg        x_train, x_test          uint8 (N, H, W[, ch]) or (N, ch, H, W)
    path/test/<class>/*.jpg         y_train, y_test          integers 0..C-1, (N,)
                                    y_train_noisy            optional, likewise

Classes of a folder are numbered in the sorted order of their names.
"""

import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.datasets import ImageFolder

logger = logging.getLogger(__name__)

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
NOISY_ARRAY = "y_train_noisy"


@dataclass(frozen=True, eq=False)
class LabelledFiles:
    """Image files and one label for each.

    Attributes:
        paths: The files.
        labels: int64 (len(paths),).
    """

    paths: tuple[str, ...]
    labels: Tensor


@dataclass(frozen=True, eq=False)
class ImageFolders:
    """A training and a test listing over the same classes."""

    train: LabelledFiles
    test: LabelledFiles
    class_names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ImageArrays:
    """What an .npz archive holds: x uint8 (N, ch, H, W), y int64 (N,) in 0..num_classes-1."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    y_train_noisy: Tensor | None
    num_classes: int


def read_image_folder(path: Path) -> ImageFolders:
    """List `path`/train and `path`/test.

    Raises:
        FileNotFoundError: One of the two is no folder, or a class in it holds no image.
        ValueError: They do not hold the same two or more classes.
    """
    train_classes, test_classes = (_class_folders(path / split) for split in ("train", "test"))
    if train_classes != test_classes:
        only_train = sorted(train_classes - test_classes)
        only_test = sorted(test_classes - train_classes)
        raise ValueError(
            f"{path}: train/ and test/ must hold the same class folders; "
            f"only in train/: {only_train}, only in test/: {only_test}"
        )
    if len(train_classes) < 2:
        raise ValueError(
            f"{path}: needs two or more class folders in train/ and test/, "
            f"found {sorted(train_classes)}"
        )
    return ImageFolders(
        train=_list_images(path / "train"),
        test=_list_images(path / "test"),
        class_names=tuple(sorted(train_classes)),
    )


def _class_folders(split: Path) -> set[str]:
    if not split.is_dir():
        raise FileNotFoundError(
            f"{split} is not a folder; an image folder is laid out as "
            "<path>/train/<class>/<image> and <path>/test/<class>/<image>"
        )
    return {entry.name for entry in split.iterdir() if entry.is_dir()}


def _list_images(split: Path) -> LabelledFiles:
    try:
        listing = ImageFolder(str(split))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{split}: {error}") from error
    paths = tuple(path for path, _ in listing.samples)
    return LabelledFiles(paths, torch.tensor(listing.targets, dtype=torch.int64))


def read_npz(path: Path) -> ImageArrays:
    """Read and check the arrays of the archive `path`; the classes are those of y_train.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: An array is missing or not as expected; with the file and the array.
    """
    arrays = _open_npz(path)
    images = {name: _as_images(path, name, arrays[name]) for name in ("x_train", "x_test")}
    if images["x_train"].shape[1:] != images["x_test"].shape[1:]:
        raise ValueError(
            f"{path}: x_train and x_test must hold images of one shape, "
            f"got {arrays['x_train'].shape} and {arrays['x_test'].shape}"
        )
    y_train = _as_labels(path, "y_train", arrays["y_train"], len(images["x_train"]))
    y_test = _as_labels(path, "y_test", arrays["y_test"], len(images["x_test"]))
    noisy = arrays.get(NOISY_ARRAY)
    y_noisy = None if noisy is None else _as_labels(path, NOISY_ARRAY, noisy, len(y_train))
    num_classes = _count_classes(path, y_train)
    for name, labels in (("y_test", y_test), (NOISY_ARRAY, y_noisy)):
        if labels is not None and int(labels.max()) >= num_classes:
            raise ValueError(
                f"{path}: {name} holds the label {int(labels.max())}, "
                f"but y_train has only 0..{num_classes - 1}"
            )
    return ImageArrays(images["x_train"], y_train, images["x_test"], y_test, y_noisy, num_classes)


def _open_npz(path: Path) -> dict[str, NDArray[np.generic]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: is no .npz archive; write one with numpy.savez")
    arrays = {}
    with np.load(path, allow_pickle=False) as archive:
        missing = [name for name in ARRAYS if name not in archive.files]
        if missing:
            raise ValueError(
                f"{path}: {', '.join(missing)} missing; expected the arrays {', '.join(ARRAYS)} "
                f"and optionally {NOISY_ARRAY}, found {', '.join(archive.files) or 'none'}"
            )
        for name in {*ARRAYS, NOISY_ARRAY} & {*archive.files}:
            try:
                arrays[name] = archive[name]
            except (ValueError, zipfile.BadZipFile) as error:
                raise ValueError(f"{path}: {name} must be a plain array: {error}") from error
    return arrays


def _as_images(path: Path, name: str, array: NDArray[np.generic]) -> Tensor:
    """Check the images and return them as uint8 (N, ch, H, W)."""
    if array.dtype != np.uint8:
        raise ValueError(
            f"{path}: {name} must be uint8 with values 0..255, got {array.dtype}; "
            "for floats in [0, 1] save (255 * x).round().astype('uint8')"
        )
    if array.ndim == 3 and array.size:
        return torch.from_numpy(array)[:, None]
    first, last = (array.ndim == 4 and array.shape[axis] in (1, 3) for axis in (1, 3))
    if not array.size or not (first or last):
        raise ValueError(
            f"{path}: {name} must be (N, H, W), (N, H, W, ch) or (N, ch, H, W) with ch 1 or 3, "
            f"and not empty, got {array.shape}"
        )
    if first and last:
        logger.warning("%s: %s %s fits two layouts; read as (N, H, W, ch)", path, name, array.shape)
    pixels = torch.from_numpy(array)
    return pixels.permute(0, 3, 1, 2) if last else pixels


def _as_labels(path: Path, name: str, array: NDArray[np.generic], count: int) -> Tensor:
    """Check the labels, up to the number of classes, and return them as int64."""
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"{path}: {name} must hold integers, got {array.dtype}; save y.astype('int64')"
        )
    if array.shape != (count,):
        raise ValueError(
            f"{path}: {name} must have the shape ({count},), one label for each image, "
            f"got {array.shape}"
        )
    labels = torch.from_numpy(array.astype(np.int64))
    if int(labels.min()) < 0:
        raise ValueError(f"{path}: {name} must not be negative, got {int(labels.min())}")
    return labels


def _count_classes(path: Path, y_train: Tensor) -> int:
    classes = np.unique(y_train.numpy())
    if len(classes) < 2 or classes[0] != 0 or classes[-1] != len(classes) - 1:
        raise ValueError(
            f"{path}: y_train must hold every label of 0..C-1, C at least 2, got {len(classes)} "
            f"labels from {classes[0]} to {classes[-1]}; renumber them"
        )
    return len(classes)

"""Data sets by name: what a task trains and is scored on, read once in a process.

Small data sets are held in memory, the others are streamed from their files. Labels are the clean
ones; noise is added by the task, except where a data set brings noisy labels of its own.
"""

import difflib
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torchvision import datasets as torchvision_datasets

from optuna_robustloss.tasks.arrays import StoredArray, as_labels, check_labels, open_arrays, reason
from optuna_robustloss.tasks.clothing1m import load_clothing1m
from optuna_robustloss.tasks.folder import load_folder
from optuna_robustloss.tasks.images import DataSet, TensorImages, pixel_moments

logger = logging.getLogger(__name__)

ROOT_VARIABLE = "OPTUNA_ROBUSTLOSS_DATA"
# What an .npz of a user's own holds.
ARRAYS = ("x_train", "y_train", "x_test", "y_test")
NOISY_ARRAY = "y_train_noisy"


def load_data(name: str, *, root: str | Path | None = None, download: bool = False) -> DataSet:
    """Load a data set; a second call with the same name and root gives the same object.

    Args:
        name: One of `data_names()`; 'folder:<path>' for an image folder with train/<class>/ and
            test/<class>/; or '<path>.npz' for uint8 arrays x_train and x_test with integer y_train
            and y_test, and optionally y_train_noisy.
        root: Folder that holds the named data sets; without it the environment variable
            OPTUNA_ROBUSTLOSS_DATA, without that ./data.
        download: Let torchvision fetch what is missing.

    Raises:
        ValueError: The name is unknown, or a file does not hold what it should.
        FileNotFoundError: The data is not where it was looked for.
    """
    folder = Path(root or os.environ.get(ROOT_VARIABLE) or "data").expanduser().resolve()
    load = _loader(name)
    key = (name, folder, Path.cwd())  # a name may hold a relative path
    with _loading:
        if key not in _loaded:
            _loaded[key] = load(name, folder, download)
        return _loaded[key]


def data_names() -> list[str]:
    """Names that `load_data` knows, besides 'folder:<path>' and '<path>.npz'.

    >>> data_names()[:3]
    ['cifar10', 'cifar100', 'clothing1m']
    """
    return sorted(_LOADERS)


def check_data_name(name: str) -> None:
    """Raise a ValueError with the close names unless `load_data` knows the name."""
    _loader(name)


def _loader(name: str) -> "Loader":
    if name in _LOADERS:
        return _LOADERS[name]
    if name.startswith("folder:"):
        return load_folder
    if name.endswith(".npz"):
        return _load_npz
    close = difflib.get_close_matches(name.lower(), _LOADERS)
    hint = f"; did you mean {' or '.join(map(repr, close))}" if close else ""
    raise ValueError(
        f"unknown data set {name!r}{hint}; known: {', '.join(data_names())}, "
        "folder:<path>, <path>.npz"
    )


def _in_memory(
    name: str,
    images: tuple[Tensor, Tensor],
    labels: tuple[Tensor, Tensor],
    class_names: tuple[str, ...],
    *,
    noisy: Tensor | None = None,
    padding: int = 4,
    flip: bool = True,
) -> DataSet:
    """Hold (train, test) uint8 images (N, ch, H, W), normalised by the training images."""
    mean, std = pixel_moments(images[0])
    train, test = (TensorImages(x, mean, std, padding=padding, flip=flip) for x in images)
    return DataSet(
        name=name,
        num_classes=len(class_names),
        train=train,
        train_labels=labels[0],
        test=test,
        test_labels=labels[1],
        train_noisy_labels=noisy,
        class_names=class_names,
    )


def _load_digits(name: str, folder: Path, download: bool) -> DataSet:
    """scikit-learn's 8x8 digits; the set has no test part, so 500 of 1 797 are always held out."""
    digits = load_digits()
    labels = torch.from_numpy(digits.target).long()
    pixels = torch.from_numpy(digits.images / 16 * 255).round().to(torch.uint8)[:, None]
    train, test = train_test_split(
        np.arange(len(labels)), test_size=500, random_state=0, stratify=digits.target
    )
    train, test = torch.from_numpy(train).sort().values, torch.from_numpy(test).sort().values
    return _in_memory(
        name,
        (pixels[train], pixels[test]),
        (labels[train], labels[test]),
        tuple(str(digit) for digit in digits.target_names),
        padding=1,  # 4 of 8 pixels would push a digit out of the image
        flip=False,
    )


@dataclass(frozen=True)
class _Torchvision:
    """Loader of a data set that torchvision reads; `train_size` is that of a complete copy."""

    kind: Any
    train_size: int
    flip: bool = True

    def __call__(self, name: str, folder: Path, download: bool) -> DataSet:
        try:
            parts = [
                self.kind(str(folder), train=train, download=download) for train in (True, False)
            ]
        except (RuntimeError, OSError) as error:
            raise FileNotFoundError(
                f"data set {name!r} not found in {folder} ({error}); set root= or "
                f"{ROOT_VARIABLE} to the folder that holds it in torchvision's layout, or let it "
                "be fetched: download=True, --download on the command line"
            ) from error
        except Exception as error:  # assertions and parsers' errors, where a file is damaged
            raise ValueError(
                f"data set {name!r} in {folder} is damaged ({reason(error)}); remove its files "
                "and let them be fetched: download=True, --download on the command line"
            ) from error
        if len(parts[0].data) < self.train_size:
            logger.warning(
                "%s in %s is a partial copy: %d of %d training images",
                name,
                folder,
                len(parts[0].data),
                self.train_size,
            )
        images = [_channels_first(torch.as_tensor(part.data)) for part in parts]
        labels = [torch.as_tensor(part.targets) for part in parts]
        return _in_memory(
            name,
            (images[0], images[1]),
            (labels[0], labels[1]),
            tuple(parts[0].classes),
            flip=self.flip,
        )


def _channels_first(pixels: Tensor) -> Tensor:
    """(N, H, W) or (N, H, W, ch) to (N, ch, H, W)."""
    return pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)


def _load_npz(name: str, folder: Path, download: bool) -> DataSet:
    """Read and check the arrays of '<path>.npz'; the classes are those of y_train.

    Everything that headers tell is checked before a value is read.
    """
    path = Path(name).expanduser()
    archive = open_arrays(path)
    missing = [array for array in ARRAYS if array not in archive]
    if missing:
        raise ValueError(
            f"{path}: {', '.join(missing)} missing; expected the arrays {', '.join(ARRAYS)} and "
            f"optionally {NOISY_ARRAY}, found {', '.join(archive)[:200] or 'none'}"
        )
    stored = {array: archive[array]() for array in (*ARRAYS, NOISY_ARRAY) if array in archive}
    layouts = [_layout(stored[array]) for array in ("x_train", "x_test")]
    if layouts[0][1:] != layouts[1][1:]:
        raise ValueError(
            f"{path}: x_train and x_test must hold images of one shape, "
            f"got {stored['x_train'].shape} and {stored['x_test'].shape}"
        )
    for array, images in (("y_train", 0), ("y_test", 1), (NOISY_ARRAY, 0)):
        if array in stored:
            check_labels(stored[array], layouts[images][0], stored[array].where, kinds="iu")
    num_classes = _count_classes(stored["y_train"])
    labels = {
        array: torch.from_numpy(as_labels(one.read(), num_classes, one.where))
        for array, one in stored.items()
        if array.startswith("y")
    }
    pixels = [_pixels(stored[array]) for array in ("x_train", "x_test")]
    return _in_memory(
        name,
        (pixels[0], pixels[1]),
        (labels["y_train"], labels["y_test"]),
        tuple(str(label) for label in range(num_classes)),
        noisy=labels.get(NOISY_ARRAY),
    )


def _layout(images: StoredArray) -> tuple[int, int, int, int]:
    """Check type and shape of images; return their shape as (N, ch, H, W)."""
    if images.dtype != np.uint8:
        raise ValueError(
            f"{images.where} must be uint8 with values 0..255, got {images.dtype}; "
            "for floats in [0, 1] save (255 * x).round().astype('uint8')"
        )
    shape = images.shape
    if len(shape) == 3 and min(shape):
        return shape[0], 1, *shape[1:]
    if len(shape) != 4 or not min(shape) or {shape[1], shape[3]}.isdisjoint((1, 3)):
        raise ValueError(
            f"{images.where} must be (N, H, W), (N, H, W, ch) or (N, ch, H, W) with ch 1 or 3, "
            f"and not empty, got {shape}"
        )
    if shape[3] not in (1, 3):
        return shape
    if shape[1] in (1, 3):
        logger.warning("%s %s fits two layouts; read as (N, H, W, ch)", images.where, shape)
    return shape[0], shape[3], *shape[1:3]


def _pixels(images: StoredArray) -> Tensor:
    """Return uint8 (N, ch, H, W)."""
    pixels = torch.from_numpy(images.read())
    last = pixels.ndim == 4 and pixels.shape[3] in (1, 3)
    return _channels_first(pixels) if pixels.ndim == 3 or last else pixels


def _count_classes(y_train: StoredArray) -> int:
    classes = np.unique(y_train.read())
    if len(classes) < 2 or classes[0] != 0 or classes[-1] != len(classes) - 1:
        raise ValueError(
            f"{y_train.where} must hold every label of 0..C-1, C at least 2, got {len(classes)} "
            f"labels from {classes[0]} to {classes[-1]}; renumber them"
        )
    return len(classes)


Loader = Callable[[str, Path, bool], DataSet]

# Characters are not flipped: their mirror images are other characters, or none.
_LOADERS: dict[str, Loader] = {
    "digits": _load_digits,
    "mnist": _Torchvision(torchvision_datasets.MNIST, 60_000, flip=False),
    "kmnist": _Torchvision(torchvision_datasets.KMNIST, 60_000, flip=False),
    "fashion-mnist": _Torchvision(torchvision_datasets.FashionMNIST, 60_000),
    "cifar10": _Torchvision(torchvision_datasets.CIFAR10, 50_000),
    "cifar100": _Torchvision(torchvision_datasets.CIFAR100, 50_000),
    "clothing1m": load_clothing1m,
}

_loaded: dict[tuple[str, Path, Path], DataSet] = {}
_loading = threading.Lock()

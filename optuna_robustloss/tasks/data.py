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

from optuna_robustloss.tasks import clothing1m
from optuna_robustloss.tasks.folder import read_image_folder, read_npz
from optuna_robustloss.tasks.images import FileImages, ImageSource, TensorImages, pixel_moments

logger = logging.getLogger(__name__)

ROOT_VARIABLE = "OPTUNA_ROBUSTLOSS_DATA"


@dataclass(frozen=True, eq=False)
class DataSet:
    """Images and labels of one classification problem.

    Attributes:
        name: The name it was loaded by.
        num_classes: C; every label is in 0..C-1.
        train: Training images.
        train_labels: Clean int64 (N,); None where they are unknown (Clothing1M).
        test: Test images.
        test_labels: Clean int64 (M,).
        train_noisy_labels: int64 (N,) labels that come noisy with the data, if any.
        validation: The data set's own clean validation images, if any.
        validation_labels: Clean int64, one for each of `validation`.
        class_names: C names, or empty.

    Raises:
        ValueError: Labels and images do not fit each other.
    """

    name: str
    num_classes: int
    train: ImageSource
    train_labels: Tensor | None
    test: ImageSource
    test_labels: Tensor
    train_noisy_labels: Tensor | None = None
    validation: ImageSource | None = None
    validation_labels: Tensor | None = None
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.train_labels is None and self.train_noisy_labels is None:
            raise ValueError(f"{self.name}: needs train_labels or train_noisy_labels")
        if (self.validation is None) != (self.validation_labels is None):
            raise ValueError(f"{self.name}: validation needs both images and labels, or neither")
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ValueError(
                f"{self.name}: {len(self.class_names)} class_names for {self.num_classes} classes"
            )
        for field, images in (
            ("train_labels", self.train),
            ("train_noisy_labels", self.train),
            ("test_labels", self.test),
            ("validation_labels", self.validation),
        ):
            labels = getattr(self, field)
            if labels is None or images is None:
                continue
            if labels.dtype != torch.int64 or labels.shape != (len(images),):
                raise ValueError(
                    f"{self.name}: {field} must be int64 ({len(images)},), one for each image, "
                    f"got {tuple(labels.shape)} {labels.dtype}"
                )
            if not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
                raise ValueError(
                    f"{self.name}: {field} must be in 0..{self.num_classes - 1}, "
                    f"got {int(labels.min())}..{int(labels.max())}"
                )


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
        return _load_folder
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


def _load_folder(name: str, folder: Path, download: bool) -> DataSet:
    files = read_image_folder(Path(name.removeprefix("folder:")).expanduser())
    return DataSet(
        name=name,
        num_classes=len(files.class_names),
        train=FileImages(files.train.paths),
        train_labels=files.train.labels,
        test=FileImages(files.test.paths),
        test_labels=files.test.labels,
        class_names=files.class_names,
    )


def _load_clothing1m(name: str, folder: Path, download: bool) -> DataSet:
    own = folder / "clothing1m"
    files = clothing1m.read_clothing1m(own if own.is_dir() else folder)
    return DataSet(
        name=name,
        num_classes=len(clothing1m.CLASS_NAMES),
        train=FileImages(files.noisy_train.paths),
        train_labels=None,
        test=FileImages(files.clean_test.paths),
        test_labels=files.clean_test.labels,
        train_noisy_labels=files.noisy_train.labels,
        validation=FileImages(files.clean_val.paths),
        validation_labels=files.clean_val.labels,
        class_names=clothing1m.CLASS_NAMES,
    )


def _load_npz(name: str, folder: Path, download: bool) -> DataSet:
    own = read_npz(Path(name).expanduser())
    return _in_memory(
        name,
        (own.x_train, own.x_test),
        (own.y_train, own.y_test),
        tuple(str(label) for label in range(own.num_classes)),
        noisy=own.y_train_noisy,
    )


Loader = Callable[[str, Path, bool], DataSet]

# Characters are not flipped: their mirror images are other characters, or none.
_LOADERS: dict[str, Loader] = {
    "digits": _load_digits,
    "mnist": _Torchvision(torchvision_datasets.MNIST, 60_000, flip=False),
    "kmnist": _Torchvision(torchvision_datasets.KMNIST, 60_000, flip=False),
    "fashion-mnist": _Torchvision(torchvision_datasets.FashionMNIST, 60_000),
    "cifar10": _Torchvision(torchvision_datasets.CIFAR10, 50_000),
    "cifar100": _Torchvision(torchvision_datasets.CIFAR100, 50_000),
    "clothing1m": _load_clothing1m,
}

_loaded: dict[tuple[str, Path, Path], DataSet] = {}
_loading = threading.Lock()

"""A user's own image folder: one sub-folder for each class.

    path/train/<class>/*.jpg
    path/test/<class>/*.jpg

Classes are numbered in the sorted order of their names. Names that begin with a dot are neither
classes nor images, nor is ``__MACOSX``.
"""

import os
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from optuna_robustloss.tasks.image_files import FileImages
from optuna_robustloss.tasks.images import DataSet


def load_folder(name: str, folder: Path, download: bool) -> DataSet:
    """List the images of 'folder:<path>'; they are not opened.

    Raises:
        FileNotFoundError: train or test is no folder.
        ValueError: They do not hold the same two or more classes; a class has no image; an image
            is no regular file; a folder is reached twice by a link, or cannot be listed.
    """
    path = Path(name.removeprefix("folder:")).expanduser()
    classes, other = (_class_folders(path / split) for split in ("train", "test"))
    if classes != other:
        raise ValueError(
            f"{path}: train/ and test/ must hold the same class folders; "
            f"only in train/: {sorted(classes - other)}, only in test/: {sorted(other - classes)}"
        )
    if len(classes) < 2:
        raise ValueError(
            f"{path}: needs two or more class folders in train/ and test/, found {sorted(classes)}"
        )
    train, train_labels = _list_images(path / "train", sorted(classes))
    test, test_labels = _list_images(path / "test", sorted(classes))
    return DataSet(
        name=name,
        num_classes=len(classes),
        train=train,
        train_labels=train_labels,
        test=test,
        test_labels=test_labels,
        class_names=tuple(sorted(classes)),
    )


def _class_folders(split: Path) -> set[str]:
    if not os.path.isdir(split):
        raise FileNotFoundError(
            f"{split} is not a folder; an image folder is laid out as "
            "<path>/train/<class>/<image> and <path>/test/<class>/<image>"
        )
    return {entry.name for entry in _entries(split) if _is_folder(entry)}


def _list_images(split: Path, classes: list[str]) -> tuple[FileImages, Tensor]:
    """Return the images of all classes, in sorted order, and their labels (N,) int64."""
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        own = _images_below(split / name)
        if not own:
            raise ValueError(
                f"{split / name}: holds no image; names of images end with "
                f"{', '.join(IMG_EXTENSIONS)}"
            )
        paths += own
        labels += [label] * len(own)
    return FileImages(paths), torch.tensor(labels, dtype=torch.int64)


def _images_below(top: Path) -> list[str]:
    """Return the images in a folder and its sub-folders, sorted by (folder, name)."""
    found: list[tuple[str, str]] = []
    seen: set[tuple[int, int]] = set()
    waiting = [str(top)]
    while waiting:
        folder = waiting.pop()
        entries = _entries(folder)
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            raise ValueError(f"{folder} is a link to a folder that is listed already: remove it")
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            if _is_folder(entry):
                waiting.append(entry.path)
            elif entry.name.lower().endswith(IMG_EXTENSIONS):
                if not os.path.isfile(entry.path) if entry.is_symlink() else not entry.is_file():
                    raise ValueError(f"{entry.path} is no regular file or a broken link: remove it")
                found.append((folder, entry.path))
    return [path for _, path in sorted(found)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # Only a link costs a call of stat; os.path.isdir answers False where the link is broken.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """Return what a folder holds, without hidden names."""
    try:
        with os.scandir(folder) as entries:
            return [e for e in entries if not e.name.startswith(".") and e.name != "__MACOSX"]
    except OSError as error:
        raise ValueError(f"{folder} cannot be listed: {error.strerror}") from error

"""Clothing1M (Xiao et al., CVPR 2015): a million shop photographs with the sellers' noisy labels.

The published layout, read here:

    noisy_train_key_list.txt   one key a line, such as images/0/12/123.jpg
    clean_val_key_list.txt     likewise
    clean_test_key_list.txt    likewise
    noisy_label_kv.txt         'key label' a line, label 0..13
    clean_label_kv.txt         likewise
    images/                    what the keys name, from the root folder

The text files may also stand in an `annotations` folder next to `images`.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from optuna_robustloss.tasks.image_files import FileImages
from optuna_robustloss.tasks.images import DataSet

CLASS_NAMES = tuple(
    "T-shirt,Shirt,Knitwear,Chiffon,Sweater,Hoodie,Windbreaker,Jacket,Down Coat,Suit,Shawl,Dress,"
    "Vest,Underwear".split(",")
)
# A million calls of stat over a network drive take minutes; a wrong root shows in the first ones.
IMAGES_LOOKED_FOR = 5
# Published lines have about 40 characters.
LONGEST_LINE = 4096


def load_clothing1m(name: str, folder: Path, download: bool) -> DataSet:
    """Read the listings in `folder`/clothing1m or `folder`; images are not opened.

    Raises:
        FileNotFoundError: A text file, or one of the first images of a listing, is missing.
        ValueError: A line is malformed or no UTF-8, a label leaves 0..13, a key has no label or
            leads out of the folder, or a listing is empty; with the file and the line.
    """
    own = folder / "clothing1m"
    root = own if own.is_dir() else folder
    files = _text_files(root)
    noisy, clean = _read_labels(files["noisy_label_kv"]), _read_labels(files["clean_label_kv"])
    train, train_labels = _read_listing(root, files["noisy_train_key_list"], noisy)
    validation, validation_labels = _read_listing(root, files["clean_val_key_list"], clean)
    test, test_labels = _read_listing(root, files["clean_test_key_list"], clean)
    return DataSet(
        name=name,
        num_classes=len(CLASS_NAMES),
        train=train,
        train_labels=None,
        test=test,
        test_labels=test_labels,
        train_noisy_labels=train_labels,
        validation=validation,
        validation_labels=validation_labels,
        class_names=CLASS_NAMES,
    )


def _text_files(root: Path) -> dict[str, Path]:
    listings = ("noisy_train_key_list", "clean_val_key_list", "clean_test_key_list")
    names = ("noisy_label_kv", "clean_label_kv", *listings)
    found = {
        name: folder / f"{name}.txt"
        for folder in (root / "annotations", root)
        for name in names
        if (folder / f"{name}.txt").is_file()
    }
    missing = [f"{name}.txt" for name in names if name not in found]
    if missing:
        raise FileNotFoundError(
            f"clothing1m: {', '.join(missing)} not found in {root} or {root / 'annotations'}; "
            "set root= to the folder that holds the published text files and images/"
        )
    return found


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, stripped text) of the lines that are not blank."""
    with file.open("rb") as lines:
        number = 0
        while line := lines.readline(LONGEST_LINE):
            number += 1
            if len(line) == LONGEST_LINE or b"\0" in line:
                raise ValueError(
                    f"{file}:{number}: is no line of text, it starts with {line[:40]!r}"
                )
            try:
                text = line.decode().strip()
            except UnicodeDecodeError as error:
                raise ValueError(f"{file}:{number}: must be UTF-8 text, {error}") from None
            if text:
                yield number, text


def _read_labels(file: Path) -> dict[str, int]:
    labels: dict[str, int] = {}
    for number, text in _lines(file):
        key, *rest = text.rsplit(maxsplit=1)
        label = rest[0] if rest else ""
        if not (label.isascii() and label.isdecimal()):
            raise ValueError(f"{file}:{number}: expected 'key label', got {text[:200]!r}")
        value = int(label[:9])  # longer numbers are out of range by their first nine digits
        if value >= len(CLASS_NAMES):
            raise ValueError(
                f"{file}:{number}: label {label[:20]} of {key[:200]!r} is not in "
                f"0..{len(CLASS_NAMES) - 1}"
            )
        if labels.setdefault(key, value) != value:
            raise ValueError(
                f"{file}:{number}: {key[:200]!r} has the label {value} here and {labels[key]} above"
            )
    return labels


def _read_listing(root: Path, file: Path, label_of: dict[str, int]) -> tuple[FileImages, Tensor]:
    """Return the images of a list of keys and their labels (N,) int64."""
    paths: list[str] = []
    labels: list[int] = []
    for number, key in _lines(file):
        if key not in label_of:
            kind = file.name.partition("_")[0]
            raise ValueError(
                f"{file}:{number}: key {key[:200]!r} has no label in {kind}_label_kv.txt"
            )
        if key.startswith(("/", "\\")) or ".." in key.split("/"):
            raise ValueError(f"{file}:{number}: key {key[:200]!r} leads out of {root}")
        path = os.path.join(root, key)
        if len(paths) < IMAGES_LOOKED_FOR and not os.path.isfile(path):
            raise FileNotFoundError(
                f"{file}:{number}: image {path} does not exist; unpack images/ under {root}"
            )
        paths.append(path)
        labels.append(label_of[key])
    if not paths:
        raise ValueError(f"{file}: holds no keys")
    return FileImages(paths), torch.tensor(labels, dtype=torch.int64)

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
from dataclasses import dataclass
from pathlib import Path

import torch

from optuna_robustloss.tasks.folder import LabelledFiles

CLASS_NAMES = (
    "T-shirt",
    "Shirt",
    "Knitwear",
    "Chiffon",
    "Sweater",
    "Hoodie",
    "Windbreaker",
    "Jacket",
    "Down Coat",
    "Suit",
    "Shawl",
    "Dress",
    "Vest",
    "Underwear",
)

NOISY_LABELS, CLEAN_LABELS = "noisy_label_kv.txt", "clean_label_kv.txt"
TRAIN_KEYS = "noisy_train_key_list.txt"
VALIDATION_KEYS = "clean_val_key_list.txt"
TEST_KEYS = "clean_test_key_list.txt"

# A million calls of stat over a network drive take minutes; a wrong root shows in the first ones.
IMAGES_LOOKED_FOR = 5


@dataclass(frozen=True, eq=False)
class Clothing1M:
    """The three listings: training files with noisy labels, the others with clean ones."""

    noisy_train: LabelledFiles
    clean_val: LabelledFiles
    clean_test: LabelledFiles


def read_clothing1m(root: Path) -> Clothing1M:
    """Read the listings of the Clothing1M folder `root`; images are not opened.

    Raises:
        FileNotFoundError: A text file, or one of the first images of a listing, is missing.
        ValueError: A line is malformed, a label leaves 0..13, a key has no label, or a listing is
            empty; with the file and the line.
    """
    files = _text_files(root)
    noisy, clean = _read_labels(files[NOISY_LABELS]), _read_labels(files[CLEAN_LABELS])
    return Clothing1M(
        noisy_train=_read_listing(root, files[TRAIN_KEYS], noisy, NOISY_LABELS),
        clean_val=_read_listing(root, files[VALIDATION_KEYS], clean, CLEAN_LABELS),
        clean_test=_read_listing(root, files[TEST_KEYS], clean, CLEAN_LABELS),
    )


def _text_files(root: Path) -> dict[str, Path]:
    names = (NOISY_LABELS, CLEAN_LABELS, TRAIN_KEYS, VALIDATION_KEYS, TEST_KEYS)
    found = {
        name: folder / name
        for folder in (root / "annotations", root)
        for name in names
        if (folder / name).is_file()
    }
    missing = [name for name in names if name not in found]
    if missing:
        raise FileNotFoundError(
            f"clothing1m: {', '.join(missing)} not found in {root} or {root / 'annotations'}; "
            "set root= to the folder that holds the published text files and images/"
        )
    return found


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, stripped text) of the lines that are not blank."""
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if text := line.strip():
                yield number, text


def _read_labels(file: Path) -> dict[str, int]:
    labels = {}
    for number, text in _lines(file):
        key, *rest = text.rsplit(maxsplit=1)
        label = rest[0] if rest else ""
        if not label.isdecimal():
            raise ValueError(f"{file}:{number}: expected 'key label', got {text!r}")
        if int(label) >= len(CLASS_NAMES):
            raise ValueError(
                f"{file}:{number}: label {label} of {key!r} is not in 0..{len(CLASS_NAMES) - 1}"
            )
        labels[key] = int(label)
    return labels


def _read_listing(
    root: Path, file: Path, label_of: dict[str, int], label_file: str
) -> LabelledFiles:
    paths: list[str] = []
    labels: list[int] = []
    for number, key in _lines(file):
        if key not in label_of:
            raise ValueError(f"{file}:{number}: key {key!r} has no label in {label_file}")
        path = os.path.join(root, key)
        if len(paths) < IMAGES_LOOKED_FOR and not os.path.isfile(path):
            raise FileNotFoundError(
                f"{file}:{number}: image {path} does not exist; unpack images/ under {root}"
            )
        paths.append(path)
        labels.append(label_of[key])
    if not paths:
        raise ValueError(f"{file}: holds no keys")
    return LabelledFiles(tuple(paths), torch.tensor(labels, dtype=torch.int64))

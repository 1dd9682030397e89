"""Label noise: from a specification and the clean labels to the labels a network is trained on.

The noise belongs to the whole training set. Image i gets one uniform number u_i from a PCG64
stream and its label is the inverse of the cumulative transition row of its true class at u_i: the
label of image i does not depend on which subset is later used, and the same seed gives the same
labels on every host.

Human labels are CIFAR-10N and CIFAR-100N (Wei et al., "Learning with Noisy Labels Revisited", ICLR
2022): non-commercial (CC BY-NC 4.0), read from disk and not shipped here.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optuna_robustloss.seeds import derive_seed, uniform
from optuna_robustloss.tasks.arrays import StoredArray, as_labels, check_labels, open_arrays
from optuna_robustloss.tasks.class_maps import class_map_for
from optuna_robustloss.tasks.data import ROOT_VARIABLE
from optuna_robustloss.tasks.spec import NoiseSpec

_HUMAN_FILES = {"cifar10": "CIFAR-10_human", "cifar100": "CIFAR-100_human"}


def transition_matrix(spec: NoiseSpec, dataset_name: str, num_classes: int) -> Tensor:
    """Return the nominal transition matrix (C, C), float64: row i = P(given label | true class i).

    Asymmetric noise flips the classes that stand in the data set's map with probability ``rate``
    and leaves the others alone (`class_map_for`); pair-flip moves every class c to c + 1 mod C.

    Raises:
        ValueError: The kind has no nominal matrix (human, file, given), the data set has no class
            map, or the matrix in the file is not row-stochastic of shape (C, C).
        FileNotFoundError: The file of the matrix does not exist.
    """
    _check_num_classes(num_classes)
    identity = torch.eye(num_classes, dtype=torch.float64)
    if spec.kind == "none":
        return identity
    if spec.kind == "matrix":
        return torch.from_numpy(_read_matrix(_only_array(spec.path), num_classes))
    if spec.kind == "symmetric":
        others = (1 - identity) / (num_classes - 1)
        return (1 - spec.rate) * identity + spec.rate * others
    if spec.kind == "pair-flip":
        target = (torch.arange(num_classes) + 1) % num_classes
    elif spec.kind in ("asymmetric", "asymmetric-blocks"):
        mapping = class_map_for(dataset_name, num_classes, blocks=spec.kind == "asymmetric-blocks")
        target = torch.tensor([mapping.get(c, c) for c in range(num_classes)])
    else:
        raise ValueError(f"noise kind {spec.kind!r} has no nominal matrix, only a realised one")
    return (1 - spec.rate) * identity + spec.rate * identity[target]


def corrupt(
    spec: NoiseSpec,
    labels: Tensor,
    num_classes: int,
    *,
    dataset: str,
    seed: int,
    root: str | Path | None = None,
) -> "NoisyLabels":
    """Return the noisy labels of a whole training set.

    Args:
        spec: The noise.
        labels: (N,) clean labels, integers in [0, num_classes); entry i is training image i.
        num_classes: Number of classes C, at least 2.
        dataset: Name of the data set, for class maps and human labels.
        seed: Seed of the noise; kinds that read labels from a file do not use it.
        root: Folder of the data, as for `load_data`; human labels lie there unless ``spec.path``
            names their file.

    Raises:
        ValueError: Labels, seed or file do not fit, or the kind is ``given`` (the labels come with
            the data set).
        FileNotFoundError: The file that the specification names does not exist.
    """
    _check_num_classes(num_classes)
    clean = _checked_labels(labels, labels.numel(), num_classes, "labels")
    if spec.kind == "given":
        raise ValueError("noise kind 'given' draws nothing: use the labels of the data set")
    if spec.kind == "human":
        folder = Path(root or os.environ.get(ROOT_VARIABLE) or "data").expanduser()
        noisy = _human_labels(spec, clean, num_classes, dataset, folder)
    elif spec.kind == "file":
        noisy = _read_labels(_only_array(spec.path), clean.size, num_classes)
    else:
        matrix = transition_matrix(spec, dataset, num_classes).numpy()
        draw = _draw_exactly if spec.counts == "exact" else _draw
        noisy = draw(clean, matrix, seed)
    return realised(torch.from_numpy(clean), torch.from_numpy(noisy), num_classes)


def realised(clean: Tensor, given: Tensor, num_classes: int) -> "NoisyLabels":
    """Return given labels (N,) with their rate and transition matrix against the clean ones (N,).

    Raises:
        ValueError: The labels are not whole numbers in [0, num_classes), or differ in number.
    """
    _check_num_classes(num_classes)
    rows = _checked_labels(clean, clean.numel(), num_classes, "clean labels")
    columns = _checked_labels(given, clean.numel(), num_classes, "given labels")
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (rows, columns), 1)
    images = counts.sum(axis=1, keepdims=True)
    transition = np.where(images > 0, counts / np.maximum(images, 1), np.eye(num_classes))
    return NoisyLabels(
        labels=torch.from_numpy(columns),
        transition=torch.from_numpy(transition),
        rate=float(np.mean(rows != columns)),
    )


def _draw(clean: NDArray[np.int64], matrix: NDArray[Any], seed: int) -> NDArray[np.int64]:
    """Labels (N,) by inverse CDF of each image's row, one uniform number per image."""
    # A stream of its own: a split drawn with the same seed must not know which labels are wrong.
    draws = uniform(_stream(seed, "label noise"), clean.size)
    noisy = np.empty_like(clean)
    for true_class, row in enumerate(matrix):
        cdf = np.cumsum(row)
        # A row's sum can fall a rounding error short of 1 and u above it: no class beyond the last
        # one with a chance may be drawn.
        cdf[np.flatnonzero(row)[-1] :] = 1.0
        mine = clean == true_class
        noisy[mine] = np.searchsorted(cdf, draws[mine], side="right")
    return noisy


def _draw_exactly(clean: NDArray[np.int64], matrix: NDArray[Any], seed: int) -> NDArray[np.int64]:
    """Labels (N,) of which ⌊P(wrong) · images⌋ of each true class are wrong, chosen at random.

    As in the code of Ma et al. (ICML 2020), which Zhou et al. (ICML 2021) share.
    """
    order = np.argsort(uniform(_stream(seed, "label noise, images"), clean.size), kind="stable")
    wrong = np.zeros(clean.size, bool)
    flips = matrix.copy()
    for true_class, row in enumerate(flips):
        mine = order[clean[order] == true_class]
        count = int((1 - row[true_class]) * mine.size + 1e-9)
        wrong[mine[:count]] = True
        if count:
            row[true_class] = 0
    drawn = _draw(clean, flips / flips.sum(axis=1, keepdims=True), seed)
    return np.where(wrong, drawn, clean)


def _stream(seed: int, purpose: str) -> int:
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    return derive_seed(seed, purpose)


def _human_labels(
    spec: NoiseSpec, clean: NDArray[np.int64], num_classes: int, dataset: str, folder: Path
) -> NDArray[np.int64]:
    if dataset not in _HUMAN_FILES:
        raise ValueError(f"human labels exist for {', '.join(_HUMAN_FILES)}, not for {dataset!r}")
    stem = folder / "cifar-n" / _HUMAN_FILES[dataset]
    places = [spec.path] if spec.path else [stem.with_suffix(end) for end in (".npz", ".pt")]
    path = next(filter(os.path.exists, places), None)
    if path is None:
        raise FileNotFoundError(
            f"no file {' or '.join(str(place) for place in places)}: fetch {stem.name}.pt from "
            "github.com/UCSC-REAL/cifar-10-100n"
        )
    if path.suffix not in (".npz", ".pt"):
        raise ValueError(
            f"{path} must be .pt, as published, or .npz, got {path.suffix!r}: the published .npy "
            f"is a pickle in TensorFlow's order of images; take {stem.name}.pt of that release"
        )
    arrays = open_arrays(path)
    # Coarse arrays number the superclasses.
    names = sorted(n for n in arrays if not n.startswith("clean") and "coarse" not in n)
    if spec.name not in names:
        raise ValueError(f"no array {spec.name!r} in {path}; it has {', '.join(names)[:200]}")
    labels = _read_labels(arrays[spec.name](), clean.size, num_classes)
    if "clean_label" in arrays:
        reference = arrays["clean_label"]()
        if not np.array_equal(_read_labels(reference, clean.size, num_classes), clean):
            raise ValueError(
                f"{path} is not aligned with the {clean.size} labels of {dataset!r}: its "
                "clean_label differs from them"
            )
    return labels


def _read_labels(stored: StoredArray, length: int, num_classes: int) -> NDArray[np.int64]:
    check_labels(stored, length, stored.where)
    return as_labels(stored.read(), num_classes, stored.where)


def _checked_labels(labels: Tensor, length: int, num_classes: int, where: str) -> NDArray[np.int64]:
    array = labels.cpu().numpy()
    check_labels(array, length, where)
    return as_labels(array, num_classes, where)


def _read_matrix(stored: StoredArray, num_classes: int) -> NDArray[np.float64]:
    """Return a row-stochastic matrix (C, C); sums within 1e-6 of 1 are rounding and divided out."""
    if stored.shape != (num_classes, num_classes) or stored.dtype.kind not in "iuf":
        raise ValueError(
            f"{stored.where} must hold a {(num_classes, num_classes)} matrix of numbers, got shape "
            f"{stored.shape} {stored.dtype}"
        )
    matrix = stored.read().astype(np.float64)
    good = (matrix >= 0) & (matrix <= 1 + 1e-6)  # NaN is neither
    if not good.all():
        row, column = np.unravel_index(int(good.argmin()), good.shape)
        raise ValueError(
            f"{stored.where} must hold probabilities from 0 to 1, got {matrix[row, column]} in "
            f"row {row}, column {column}"
        )
    sums = matrix.sum(axis=1)
    worst = int(np.abs(sums - 1).argmax())
    if abs(sums[worst] - 1) > 1e-6:
        raise ValueError(f"{stored.where}: row {worst} must sum to 1, got {sums[worst]}")
    return np.asarray(matrix / sums[:, None])


def _only_array(path: Path | None) -> StoredArray:
    assert path is not None
    arrays = open_arrays(path)
    if len(arrays) != 1:
        raise ValueError(f"{path} must hold one array, it has {', '.join(sorted(arrays))[:200]}")
    return next(iter(arrays.values()))()


def _check_num_classes(num_classes: int) -> None:
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")


@dataclass(frozen=True)
class NoisyLabels:
    """The labels a network is trained on, and how far they are from the clean ones."""

    labels: Tensor
    """(N,) int64, on the CPU."""
    transition: Tensor
    """(C, C) float64, realised: row i is the share of each given label among the images of true
    class i. A class without an image has the identity row."""
    rate: float
    """Realised share of wrong labels, 0 to 1."""

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
from typing import Any, Literal, Self, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from optuna_robustloss.seeds import derive_seed, uniform
from optuna_robustloss.spec_files import StrictModel
from optuna_robustloss.tasks.class_maps import class_map_for
from optuna_robustloss.tasks.data import ROOT_VARIABLE

NoiseKind = Literal[
    "none", "symmetric", "pair-flip", "asymmetric", "human", "matrix", "file", "given"
]
_WITH_RATE = ("symmetric", "pair-flip", "asymmetric")
_WITH_PATH = ("matrix", "file")
# The field that the text after the colon fills.
_ARGUMENT = (
    {"human": "name"} | dict.fromkeys(_WITH_RATE, "rate") | dict.fromkeys(_WITH_PATH, "path")
)
_HUMAN_FILES = {
    "cifar10": Path("cifar-n/CIFAR-10_human.npz"),
    "cifar100": Path("cifar-n/CIFAR-100_human.npz"),
}


def transition_matrix(spec: "NoiseSpec", dataset_name: str, num_classes: int) -> Tensor:
    """Return the nominal transition matrix (C, C), float64: row i = P(given label | true class i).

    Asymmetric noise flips the classes that stand in the data set's map with probability ``rate``
    and leaves the others alone (`class_map_for`); pair-flip moves every class c to c + 1 mod C.

    Raises:
        ValueError: the kind has no nominal matrix (human, file, given), the data set has no class
            map, or the matrix in the file is not row-stochastic of shape (C, C).
        FileNotFoundError: the file of the matrix does not exist.
    """
    _check_num_classes(num_classes)
    identity = torch.eye(num_classes, dtype=torch.float64)
    if spec.kind == "none":
        return identity
    if spec.kind == "matrix":
        return torch.from_numpy(_read_matrix(cast(Path, spec.path), num_classes))
    if spec.kind == "symmetric":
        others = (1 - identity) / (num_classes - 1)
        return (1 - spec.rate) * identity + spec.rate * others
    if spec.kind == "pair-flip":
        target = (torch.arange(num_classes) + 1) % num_classes
    elif spec.kind == "asymmetric":
        mapping = class_map_for(dataset_name, num_classes)
        target = torch.tensor([mapping.get(c, c) for c in range(num_classes)])
    else:
        raise ValueError(f"noise kind {spec.kind!r} has no nominal matrix, only a realised one")
    return (1 - spec.rate) * identity + spec.rate * identity[target]


def corrupt(
    spec: "NoiseSpec",
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
        ValueError: labels, seed or file do not fit, or the kind is ``given`` (the labels come with
            the data set).
        FileNotFoundError: the file that the specification names does not exist.
    """
    _check_num_classes(num_classes)
    clean = _as_labels(labels.cpu().numpy(), labels.numel(), num_classes, "labels")
    if spec.kind == "given":
        raise ValueError("noise kind 'given' draws nothing: use the labels of the data set")
    if spec.kind == "human":
        folder = Path(root or os.environ.get(ROOT_VARIABLE) or "data").expanduser()
        noisy = _human_labels(spec, clean, num_classes, dataset, folder)
    elif spec.kind == "file":
        path = cast(Path, spec.path)
        noisy = _as_labels(_read_array(path), clean.size, num_classes, path.name)
    else:
        matrix = transition_matrix(spec, dataset, num_classes).numpy()
        noisy = _draw(clean, matrix, seed)
    return realised(torch.from_numpy(clean), torch.from_numpy(noisy), num_classes)


def realised(clean: Tensor, given: Tensor, num_classes: int) -> "NoisyLabels":
    """Return given labels (N,) with their rate and transition matrix against the clean ones (N,).

    Raises:
        ValueError: the labels are not whole numbers in [0, num_classes), or differ in number.
    """
    _check_num_classes(num_classes)
    rows = _as_labels(clean.cpu().numpy(), clean.numel(), num_classes, "clean labels")
    columns = _as_labels(given.cpu().numpy(), clean.numel(), num_classes, "given labels")
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
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    # A stream of its own: a split drawn with the same seed must not know which labels are wrong.
    draws = uniform(derive_seed(seed, "label noise"), clean.size)
    noisy = np.empty_like(clean)
    for true_class, row in enumerate(matrix):
        cdf = np.cumsum(row)
        # A row's sum can fall a rounding error short of 1 and u above it: no class beyond the last
        # one with a chance may be drawn.
        cdf[np.flatnonzero(row)[-1] :] = 1.0
        mine = clean == true_class
        noisy[mine] = np.searchsorted(cdf, draws[mine], side="right")
    return noisy


def _human_labels(
    spec: "NoiseSpec", clean: NDArray[np.int64], num_classes: int, dataset: str, folder: Path
) -> NDArray[np.int64]:
    if dataset not in _HUMAN_FILES:
        raise ValueError(f"human labels exist for {', '.join(_HUMAN_FILES)}, not for {dataset!r}")
    path = spec.path or folder / _HUMAN_FILES[dataset]
    arrays = _read_arrays(path)
    # Coarse arrays number the superclasses.
    names = sorted(n for n in arrays if not n.startswith("clean") and "coarse" not in n)
    if spec.name not in names:
        raise ValueError(f"no array {spec.name!r} in {path.name}; it has {', '.join(names)}")
    reference = arrays.get("clean_label")
    if reference is not None and not np.array_equal(reference, clean):
        raise ValueError(
            f"{path.name} is not aligned with the {clean.size} labels of {dataset!r}: its "
            f"clean_label ({reference.size} entries) differs from them"
        )
    return _as_labels(arrays[spec.name], clean.size, num_classes, f"{path.name}:{spec.name}")


def _as_labels(array: NDArray[Any], length: int, num_classes: int, where: str) -> NDArray[np.int64]:
    """Integers in [0, C), shape (length,), as a new int64 array; text files give floats."""
    if array.shape != (length,) or length == 0:
        raise ValueError(
            f"{where} must hold {length or 'some'} labels in one row, got shape {array.shape}"
        )
    if array.dtype.kind not in "iuf" or not np.array_equal(array, np.trunc(array)):
        raise ValueError(f"{where} must hold whole numbers, got {array.dtype} {array[:5]}")
    outside = array[(array < 0) | (array >= num_classes)]
    if outside.size:
        raise ValueError(f"{where} must be in [0, {num_classes}), got {outside[0]}")
    return array.astype(np.int64)


def _read_matrix(path: Path, num_classes: int) -> NDArray[np.float64]:
    matrix = _read_array(path).astype(np.float64)
    square = (num_classes, num_classes)
    if matrix.shape != square:
        raise ValueError(f"{path.name} must hold a {square} matrix, got shape {matrix.shape}")
    if not (np.isfinite(matrix).all() and (matrix >= 0).all()):
        raise ValueError(f"{path.name} must hold probabilities of 0 or more, got {matrix.min()}")
    sums = matrix.sum(axis=1)
    worst = int(np.abs(sums - 1).argmax())
    if abs(sums[worst] - 1) > 1e-6:
        raise ValueError(f"{path.name}: row {worst} must sum to 1, got {sums[worst]}")
    return np.asarray(matrix / sums[:, None])


def _read_array(path: Path) -> NDArray[Any]:
    arrays = _read_arrays(path)
    if len(arrays) != 1:
        raise ValueError(f"{path.name} must hold one array, it has {', '.join(sorted(arrays))}")
    return next(iter(arrays.values()))


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}")
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    if path.suffix == ".npy":
        return {"array": np.load(path, allow_pickle=False)}
    if path.suffix in (".csv", ".txt"):
        return {"array": np.loadtxt(path, delimiter="," if path.suffix == ".csv" else None)}
    raise ValueError(f"{path.name} must be .npy, .npz, .csv or .txt, got {path.suffix!r}")


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


class NoiseSpec(StrictModel):
    """A kind of label noise and its argument.

    In YAML and in other models it is a mapping of the fields below or a text: ``none``, ``given``,
    ``symmetric:RATE``, ``pair-flip:RATE``, ``asymmetric:RATE``, ``human:NAME``, ``matrix:PATH`` or
    ``file:PATH``. A field that the kind does not use is an error.

    >>> NoiseSpec.parse("symmetric:0.8").label
    'symmetric 80 %'
    """

    kind: NoiseKind
    rate: float = Field(default=0.0, ge=0.0, le=1.0, allow_inf_nan=False)
    """Probability that a label is wrong (symmetric, pair-flip; asymmetric: of a class that stands
    in the class map)."""
    name: str | None = None
    """human: the array, for instance ``worse_label``."""
    path: Path | None = None
    """matrix: (C, C), row-stochastic. file: (N,) labels of the full training set. human: the .npz,
    by default the one under ``cifar-n`` in the data folder."""

    @model_validator(mode="before")
    @classmethod
    def _read_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        kind, colon, argument = value.partition(":")
        if not colon or kind not in get_args(NoiseKind):
            return {"kind": kind}
        if kind not in _ARGUMENT:
            raise ValueError(f"noise kind {kind!r} takes no argument, got {argument!r}")
        return {"kind": kind, _ARGUMENT[kind]: argument}

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text form, such as ``symmetric:0.8``.

        Raises:
            ValueError: the kind is unknown, or its argument is missing, superfluous or no number.
        """
        return cls.model_validate(text)

    @property
    def label(self) -> str:
        """Short text for tables and plots."""
        if self.kind in _WITH_RATE:
            return f"{self.kind} {100 * self.rate:g} %"
        if self.path is not None and self.kind in _WITH_PATH:
            return f"{self.kind} {self.path.name}"
        return {"none": "clean", "given": "given labels"}.get(self.kind, f"human {self.name}")

    @property
    def symmetric(self) -> bool:
        """Whether the noise treats all classes alike by construction."""
        return self.kind in ("none", "symmetric")

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        if self.kind in _WITH_RATE and "rate" not in self.model_fields_set:
            raise ValueError(f"noise kind {self.kind!r} needs a rate in [0, 1]")
        if self.kind not in _WITH_RATE and self.rate != 0.0:
            raise ValueError(f"noise kind {self.kind!r} takes no rate, got {self.rate}")
        if self.kind == "human" and not self.name:
            raise ValueError("noise kind 'human' needs the name of the array, e.g. 'worse_label'")
        if self.kind != "human" and self.name is not None:
            raise ValueError(f"noise kind {self.kind!r} takes no name, got {self.name!r}")
        if self.kind in _WITH_PATH and self.path is None:
            raise ValueError(f"noise kind {self.kind!r} needs the path of a file")
        if self.kind not in (*_WITH_PATH, "human") and self.path is not None:
            raise ValueError(f"noise kind {self.kind!r} takes no path, got {str(self.path)!r}")
        return self

"""From a ``TaskSpec`` and a seed to the images and labels of one run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from optuna_robustloss.seeds import derive_seed, permutation
from optuna_robustloss.tasks.data import load_data
from optuna_robustloss.tasks.images import DataSet, ImageSource
from optuna_robustloss.tasks.noise import NoisyLabels, corrupt, realised
from optuna_robustloss.tasks.spec import TaskSpec


@dataclass(frozen=True)
class LabelledImages:
    """A part of an image source: ``index (n,)`` chooses, ``labels (N,)`` is of all its images."""

    images: ImageSource
    index: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True)
class Task:
    """A task with its noise drawn and its images split: all a training run needs."""

    spec: TaskSpec
    num_classes: int
    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages
    clean_train_labels: Tensor | None
    noise: NoisyLabels | None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.train.images.shape


def _noisy_labels(
    spec: TaskSpec, data: DataSet, seed: int, root: str | Path | None
) -> tuple[Tensor, NoisyLabels | None]:
    if spec.noise.kind == "given":
        if data.train_noisy_labels is None:
            raise ValueError(
                f"noise 'given' needs labels that come noisy with the data, and {data.name!r} has "
                "none: choose another kind of noise"
            )
        if data.train_labels is None:
            return data.train_noisy_labels, None
        noise = realised(data.train_labels, data.train_noisy_labels, data.num_classes)
        return noise.labels, noise
    if data.train_labels is None:
        raise ValueError(
            f"the labels of {data.name!r} come noisy: set noise to 'given', not {spec.noise.kind!r}"
        )
    noise = corrupt(
        spec.noise,
        data.train_labels,
        data.num_classes,
        dataset=data.name,
        seed=derive_seed(seed, "noise"),
        root=root,
    )
    return noise.labels, noise


def prepare_task(
    spec: TaskSpec, *, seed: int, root: str | Path | None = None, download: bool = False
) -> Task:
    """Load the data, draw the noise and split: the same on every host for the same seed.

    Training labels are noisy. Validation images come from the training set (or are the data set's
    own validation images) and are disjoint from the training and the test images; their labels
    are clean, or noisy where the spec says so.

    Args:
        spec: the task.
        seed: of the noise and the split.
        root: folder of the data; see ``load_data``.
        download: fetch missing data through torchvision.

    Raises:
        ValueError: there are fewer images than the split asks for, or the noise does not fit.

    """
    data = load_data(spec.dataset, root=root, download=download)
    labels, noise = _noisy_labels(spec, data, seed, root)
    order = permutation(derive_seed(seed, "split"), len(data.train))
    own = data.validation if spec.validation_labels == "clean" else None
    held_out = spec.validation if own is None else 0
    available = len(order) - held_out
    wanted = available if spec.train is None else spec.train
    if wanted < 1 or wanted > available:
        raise ValueError(
            f"{data.name!r} has {len(order)} training images: {spec.train or 'some'} for training "
            f"and {held_out} for validation do not fit; lower 'train' or 'validation'"
        )
    if own is not None and data.validation_labels is not None:
        if spec.validation > len(own):
            raise ValueError(
                f"{data.name!r} has {len(own)} validation images, not {spec.validation}: lower "
                "'validation'"
            )
        index = permutation(derive_seed(seed, "validation"), len(own))[: spec.validation]
        validation = LabelledImages(own, index, data.validation_labels)
    else:
        clean = data.train_labels if spec.validation_labels == "clean" else labels
        if clean is None:
            raise ValueError(f"{data.name!r} has no clean labels to validate on")
        validation = LabelledImages(data.train, order[:held_out], clean)
    return Task(
        spec=spec,
        num_classes=data.num_classes,
        train=LabelledImages(data.train, order[held_out : held_out + wanted], labels),
        validation=validation,
        test=LabelledImages(data.test, torch.arange(len(data.test)), data.test_labels),
        clean_train_labels=data.train_labels,
        noise=noise,
    )

"""Forward correction with an estimated transition matrix: Patrini et al. (CVPR 2017)."""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optuna_robustloss.losses.published.corrected import ForwardCorrectionLoss
from optuna_robustloss.losses.scaled import ScaledLoss
from optuna_robustloss.tasks.prepare import LabelledImages, Task
from optuna_robustloss.tasks.recipes import Precision
from optuna_robustloss.training.evaluation import TrainingResult, autocast
from optuna_robustloss.training.networks import default_device
from optuna_robustloss.training.train import steps_per_epoch, train

_logger = logging.getLogger(__name__)

#: Share of the small probabilities, per class, above which images are no anchor but outliers.
ANCHOR_QUANTILE = 0.97
#: Share of the training images on which the first network is validated with their noisy labels.
HELD_OUT = 0.1
#: Weight of the identity in a transition matrix by which some label could not occur.
_IDENTITY = 0.01


def train_forward_corrected(
    task: Task, *, seed: int, epochs: int | None = None, scale: float = 1.0, **options: Any
) -> TrainingResult:
    """Train with forward correction: Patrini et al. (CVPR 2017), section 4.

    Trains with cross-entropy by the recipe, estimates the transition matrix from that network's
    probabilities on the training images, and trains again from the same start with the forward
    loss. So it costs two trainings.

    As in the authors' code (giorgiop/loss-correction, ``models.py``) the first network is that of
    the epoch with the lowest cross-entropy on a tenth of the noisy training images, held out from
    this first training. Unlike there, the second training uses all images, and its last epoch
    counts, as for all methods.

    Args:
        task: data, architecture and recipe.
        seed: of both trainings.
        epochs: of each training; by default the recipe's.
        scale: factor of both losses.
        options: further ones of ``train``, for the second training.

    Returns:
        the second training.

    """
    device = options["device"] = options.get("device") or default_device()
    network = best_on_noisy_labels(task, seed=seed, epochs=epochs, scale=scale, device=device)
    transition = torch.eye(task.num_classes, dtype=torch.float64)
    if network is None:
        _logger.warning(
            "forward correction on %s trains without a correction: the first network diverged "
            "within its first epoch",
            task.spec.label,
        )
    else:
        probabilities = predict(network, task.train, device, task.spec.recipe.precision)
        quantile = ANCHOR_QUANTILE if task.num_classes < 100 else 1.0
        transition = _possible_labels(estimate_transition(probabilities, quantile), task)
    criterion = ScaledLoss(ForwardCorrectionLoss(transition), scale)
    return train(task, [criterion], seed=seed, epochs=epochs, **options).finish()[0]


def best_on_noisy_labels(
    task: Task, *, seed: int, epochs: int | None, scale: float, device: torch.device
) -> nn.Module | None:
    """Train with cross-entropy, and return the network of the epoch with the lowest noisy loss.

    The loss is cross-entropy on the last tenth of the training images, which are not trained on.
    A training that diverges ends there, with a warning; its epochs before count.

    Returns:
        the network, or None if no epoch has a finite loss.

    """
    count = max(1, round(HELD_OUT * len(task.train)))
    held_out = replace(task.train, index=task.train.index[-count:])
    rest = replace(task, train=replace(task.train, index=task.train.index[:-count]))
    if len(task.train) == 1:
        rest = task
    per_epoch, total = steps_per_epoch(rest), epochs or task.spec.recipe.epochs
    training = train(
        rest,
        [ScaledLoss(nn.CrossEntropyLoss(), scale)],
        seed=seed,
        evaluate_on=held_out,
        evaluate_at=[per_epoch * epoch for epoch in range(1, total)],
        epochs=total,
        device=device,
    )
    best, lowest = None, math.inf
    labels = task.train.labels[held_out.index]
    for _ in training:
        if not training.alive:
            _logger.warning(
                "the first network of forward correction on %s diverged: its best epoch before "
                "counts",
                task.spec.label,
            )
            break
        network = training.network(0)
        probabilities = predict(network, held_out, device, task.spec.recipe.precision)
        loss = float(F.nll_loss(probabilities.clamp_min(1e-30).log(), labels))
        if loss < lowest:
            best, lowest = copy.deepcopy(network), loss
    return best


def estimate_transition(probabilities: Tensor, quantile: float = ANCHOR_QUANTILE) -> Tensor:
    """Estimate a transition matrix from a network trained on noisy labels.

    Patrini et al. (CVPR 2017), Eq. 12 and 13: row i is the network's output for class i's anchor,
    the image with the highest probability of i; the images above the quantile are left out as
    outliers, as in the authors' code.

    Args:
        probabilities: ``(N, C)``.
        quantile: of the probabilities of a class, below which its anchor is; 1 takes the highest
            probability, as the authors do on CIFAR-100.

    Returns:
        ``(C, C)`` float64 with rows that sum to 1.

    """
    rows = []
    for of_class in probabilities.double().T:
        order = of_class.argsort(stable=True)
        position = math.ceil(quantile * (len(order) - 1)) - (quantile < 1)
        rows.append(probabilities[order[position]].double())
    matrix = torch.stack(rows)
    return matrix / matrix.sum(1, keepdim=True)


def _possible_labels(transition: Tensor, task: Task) -> Tensor:
    """Mix in the identity if some label could not occur: its loss would be infinite."""
    if bool((transition > 0).any(0).all()):
        return transition
    _logger.warning(
        "the first network of forward correction on %s collapsed: it gives some classes the "
        "probability 0, so that the identity has the weight %g in the transition matrix",
        task.spec.label,
        _IDENTITY,
    )
    identity = torch.eye(len(transition), dtype=transition.dtype)
    return (1 - _IDENTITY) * transition + _IDENTITY * identity


@torch.no_grad()
def predict(
    model: nn.Module,
    part: LabelledImages,
    device: torch.device,
    precision: Precision = "float32",
    batch_size: int = 500,
) -> Tensor:
    """Return the probabilities ``(n, C)``, on the CPU, of a network in evaluation mode."""
    was_training = model.training
    model.eval()
    found = []
    for _, images in part.images.batches(part.index, batch_size, device=device):
        with autocast(precision, device):
            logits = model(images)
        found.append(logits.float().softmax(-1).cpu())
    model.train(was_training)
    return torch.cat(found)

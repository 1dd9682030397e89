"""Methods that change the training and not only the loss: forward correction and JoCoR."""

from __future__ import annotations

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
from optuna_robustloss.training.networks import default_device, initial_model
from optuna_robustloss.training.train import train

#: Share of the small probabilities, per class, above which images are no anchor but outliers.
ANCHOR_QUANTILE = 0.97
#: JoCoR's share of wrong labels where it is unknown.
UNKNOWN_RATE = 0.4


def train_forward_corrected(
    task: Task, *, seed: int, epochs: int | None = None, scale: float = 1.0, **options: Any
) -> TrainingResult:
    """Train with forward correction: Patrini et al. (CVPR 2017), section 4.

    Trains with cross-entropy by the recipe, estimates the transition matrix from that network's
    probabilities on the training images, and trains again from the same start with the forward
    loss. So it costs two trainings.

    Args:
        task: data, architecture and recipe.
        seed: of both trainings.
        epochs: of each training; by default the recipe's.
        scale: factor of both losses.
        options: further ones of ``train``, for the second training.

    Returns:
        the second training, or the first if it diverged.

    """
    device = options["device"] = options.get("device") or default_device()
    (first,) = train(
        task,
        [ScaledLoss(nn.CrossEntropyLoss(), scale)],
        seed=seed,
        evaluate_on=options["evaluate_on"],
        epochs=epochs,
        device=device,
        keep_models=True,
    ).finish()
    if first.diverged:
        return first
    assert first.model is not None
    probabilities = predict(first.model, task.train, device, task.spec.recipe.precision)
    quantile = ANCHOR_QUANTILE if task.num_classes < 100 else 1.0
    criterion = ForwardCorrectionLoss(estimate_transition(probabilities, quantile))
    training = train(task, [ScaledLoss(criterion, scale)], seed=seed, epochs=epochs, **options)
    return training.finish()[0]


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


class Twins(nn.Module):
    """Two networks on the same images.

    With gradients it returns the logits of both, ``(N, 2, C)``; without, for evaluation, those of
    the first alone, ``(N, C)``: an ensemble of both would be another method.
    """

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.second = second

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        logits: Tensor = self.first(images)
        if not torch.is_grad_enabled():
            return logits
        return torch.stack([logits, self.second(images)], 1)


class JoCoRLoss(nn.Module):
    """Joint loss of two networks: Wei et al. (CVPR 2020), Eq. 1-5.

    (1 − λ)(CE₁ + CE₂) + λ(KL(p₁‖p₂) + KL(p₂‖p₁)) per image, averaged over the R(t) of a batch for
    which it is smallest; R(t) falls from 1 to 1 − τ within the first ``gradual`` epochs.

    Args:
        forget_rate: τ, the share of wrong labels.
        epochs: of the training.
        co_lambda: λ; .9 is the default of the authors' code.
        gradual: T_k in epochs, 10 as published.

    Raises:
        ValueError: a share is outside of [0, 1).

    """

    def __init__(
        self, forget_rate: float, epochs: int, *, co_lambda: float = 0.9, gradual: float = 10
    ) -> None:
        super().__init__()
        if not (0 <= forget_rate < 1 and 0 <= co_lambda < 1):
            raise ValueError(
                f"forget_rate and co_lambda are shares below 1, got {forget_rate}, {co_lambda}"
            )
        self.forget_rate, self.epochs = forget_rate, epochs
        self.co_lambda, self.gradual = co_lambda, gradual
        self.progress = 0.0
        """Share of the steps done; set it before each step."""

    @property
    def remember_rate(self) -> float:
        """Share R(t) of a batch that the loss is averaged over."""
        epoch = math.floor(self.progress * self.epochs + 1e-9)
        return 1 - min(epoch / self.gradual * self.forget_rate, self.forget_rate)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a scalar, of ``logits (N, 2, C)`` and class indices ``(N,)``."""
        if logits.ndim != 3 or logits.shape[1] != 2:
            raise ValueError(f"logits of two networks are (N, 2, C), got {tuple(logits.shape)}")
        log_p = logits.float().log_softmax(-1)
        cross_entropy = F.nll_loss(
            log_p.flatten(0, 1), target.repeat_interleave(2), reduction="none"
        )
        first, second = log_p.unbind(1)
        divergence = ((first.exp() - second.exp()) * (first - second)).sum(-1)
        supervised = cross_entropy.view(-1, 2).sum(-1)
        losses = (1 - self.co_lambda) * supervised + self.co_lambda * divergence
        count = max(1, int(self.remember_rate * len(losses)))
        kept = losses.detach().argsort(stable=True)[:count]
        return losses[kept].mean()


def build_twins(task: Task, seed: int) -> Twins:
    """Build the task's network twice, with different initial weights."""
    return Twins(initial_model(task, seed), initial_model(task, seed, "init of the second"))


def train_jocor(
    task: Task, *, seed: int, epochs: int | None = None, scale: float = 1.0, **options: Any
) -> TrainingResult:
    """Train with JoCoR: Wei et al. (CVPR 2020).

    As in the paper the method gets the share of wrong labels: the realised one, or .4 where it is
    unknown. The accuracy is that of the first network.

    Args:
        task: data, architecture and recipe.
        seed: of the training.
        epochs: by default the recipe's.
        scale: factor of the loss.
        options: further ones of ``train``.

    """
    rate = UNKNOWN_RATE if task.noise is None else task.noise.rate
    loss = JoCoRLoss(rate, epochs or task.spec.recipe.epochs)
    training = train(
        task,
        [ScaledLoss(loss, scale)],
        seed=seed,
        epochs=epochs,
        backend="separate",
        network=build_twins,
        **options,
    )
    (result,) = training.finish()
    if isinstance(result.model, Twins):
        result = replace(result, model=result.model.first)
    return result

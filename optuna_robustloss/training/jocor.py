"""JoCoR, two networks that are trained to agree: Wei et al. (CVPR 2020)."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optuna_robustloss.losses.scaled import ScaledLoss
from optuna_robustloss.tasks.prepare import Task
from optuna_robustloss.training.evaluation import Evaluation, TrainingResult
from optuna_robustloss.training.networks import initial_model
from optuna_robustloss.training.train import steps_per_epoch, train

#: Share of wrong labels where it is unknown.
UNKNOWN_RATE = 0.4
#: Share of the epochs over which the reported accuracy is averaged: the authors' 10 of 200.
REPORTED = 0.05


class Twins(nn.Module):
    """Two networks on the same images: their logits are ``(N, 2, C)``.

    Their accuracy is the mean over both, as the authors report it, and not that of an ensemble.
    """

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.second = second

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(N, 2, C)``."""
        return torch.stack([self.first(images), self.second(images)], 1)


class JoCoRLoss(nn.Module):
    """Joint loss of two networks: Wei et al. (CVPR 2020), Eq. 1-5.

    (1 − λ)(CE₁ + CE₂) + λ(KL(p₁‖p₂) + KL(p₂‖p₁)) per image, averaged over the R(t) of a batch for
    which it is smallest. As in the authors' code (hongxin001/JoCoR, ``algorithm/jocor.py``), R is 1
    in the first epoch, 1 − τ/9 in the second, and 1 − τ from the tenth on, for T_k = 10.

    Args:
        forget_rate: τ.
        epochs: of the training.
        co_lambda: λ; .1 is the default of the authors' ``main.py``.
        gradual: T_k in epochs, 10 as published.

    Raises:
        ValueError: a share is outside of [0, 1).

    """

    def __init__(
        self, forget_rate: float, epochs: int, *, co_lambda: float = 0.1, gradual: int = 10
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
        return 1 - self.forget_rate * min(1.0, epoch / max(1, self.gradual - 1))

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


def forget_rate(task: Task) -> float:
    """Return JoCoR's τ: the noise rate, which the method gets as in the paper.

    As in the authors' code, it is half of the nominal rate for asymmetric noise, which leaves half
    of the classes clean, and the nominal rate for other noise that has one; elsewhere the realised
    rate, or .4 where it is unknown.
    """
    noise = task.spec.noise
    if noise.kind.startswith("asymmetric"):
        return noise.rate / 2
    if noise.kind in ("symmetric", "pair-flip"):
        return noise.rate
    return UNKNOWN_RATE if task.noise is None else task.noise.rate


def train_jocor(
    task: Task,
    *,
    seed: int,
    epochs: int | None = None,
    scale: float = 1.0,
    co_lambda: float = 0.1,
    **options: Any,
) -> TrainingResult:
    """Train with JoCoR: Wei et al. (CVPR 2020), by the authors' code (hongxin001/JoCoR).

    Accuracies are the mean of both networks; that at the end is also the mean over the ends of the
    last 5 % of the epochs, the authors' 10 of 200.

    Args:
        task: data, architecture and recipe.
        seed: of the training.
        epochs: by default the recipe's.
        scale: factor of the loss.
        co_lambda: λ; see ``JoCoRLoss``.
        options: further ones of ``train``.

    Returns:
        the evaluations, and the first network if networks are kept.

    """
    epochs = epochs or task.spec.recipe.epochs
    per_epoch = steps_per_epoch(task)
    last = [per_epoch * (epochs - k) for k in range(max(1, round(REPORTED * epochs)))]
    asked = {*options.pop("evaluate_at", ()), last[0]}
    training = train(
        task,
        [ScaledLoss(JoCoRLoss(forget_rate(task), epochs, co_lambda=co_lambda), scale)],
        seed=seed,
        evaluate_at=[*asked, *last],
        epochs=epochs,
        backend="separate",
        network=build_twins,
        **options,
    )
    (result,) = training.finish()
    model = result.model.first if isinstance(result.model, Twins) else None
    if not result.complete:
        return replace(result, model=model)
    end = mean_evaluation([e for e in result.curve if e.step in last])
    curve = [e for e in result.curve[:-1] if e.step in asked]
    return replace(result, curve=(*curve, end), model=model)


def mean_evaluation(evaluations: list[Evaluation]) -> Evaluation:
    """Return the mean accuracies of several evaluations, at the step of the last."""
    also = zip(*(evaluation.also for evaluation in evaluations), strict=True)
    return replace(
        evaluations[-1],
        accuracy=fmean(evaluation.accuracy for evaluation in evaluations),
        also=tuple(map(fmean, also)),
    )

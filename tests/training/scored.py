"""Scores of tiny trainings, and what they report."""

from torch import nn

from optuna_robustloss.losses import MAE_THETA, TaylorLoss
from optuna_robustloss.training.scoring import score_losses
from training.tiny import ADAM, CPU, Loss, digits, never_the_label

ETAS = (10.0, 6.0, 3.0, 1.0, 0.3, 0.1)
THREE = ("digits,mlp2", "digits,mlp2,symmetric:0.4", "digits,mlp3")


def tasks(*texts, **recipe):
    return [digits(text, epochs=4, **ADAM | recipe) for text in texts or THREE[:2]]


def maes(etas=ETAS):
    return [lambda classes, eta=eta: TaylorLoss(MAE_THETA, classes, eta=eta) for eta in etas]


def six():
    """Four losses that learn, and two that learn to avoid the labels."""
    return [*maes()[:4], *[lambda classes: Loss(never_the_label)] * 2]


def scored(chosen, losses, **options):
    defaults = {"seed": 5, "device": CPU, "stop_at_chance_after": None, "backend": "batch"}
    return score_losses(chosen, losses, **defaults | options)


def score_of(task, make=nn.CrossEntropyLoss, **options):
    """The score of one loss on one task."""
    (result,) = scored([task], [lambda classes: make()], backend=None, **options)
    (score,) = result.scores.values()
    return score


class Reports:
    """Keeps the reports of every loss; that of loss ``index`` raises from step ``at`` on."""

    def __init__(self, count, *, index=None, at=0):
        self.received = [[] for _ in range(count)]
        self.index, self.at = index, at

    def __len__(self):
        return len(self.received)

    def __getitem__(self, position):
        return lambda step, accuracy: self.note(position, step, accuracy)

    def note(self, index, step, accuracy):
        self.received[index].append((step, accuracy))
        if index == self.index and step >= self.at:
            raise ValueError(f"{index} at {step}")

    def steps(self, index):
        return [step for step, _ in self.received[index]]

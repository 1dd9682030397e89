"""Loss files with nothing left at its default."""

import pytest

from losses.reference import random_theta
from optuna_robustloss.losses import PhasedLoss, ScaledLoss, SCELoss, TaylorLoss, save_loss

PROVENANCE = {
    "study": "map-then-symmetric",
    "tasks": ["mnist/m4", "mnist/s8"],
    "provisional": True,
    "score": {"mean": 0.861, "seeds": 3, "note": None},
    "by": "Ünal",
}


def taylor():
    """A Taylor loss with nothing left at its default."""
    theta = random_theta(0).tolist()
    return TaylorLoss(theta, 10, eta=0.63, cross_entropy_weight=0.03, variable="log")


def phased(**options):
    return PhasedLoss(
        SCELoss(alpha=0.3), ScaledLoss(taylor(), 0.5), switch=0.08, width=0.05, **options
    )


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "loss.json"
    save_loss(taylor(), path, provenance=PROVENANCE)
    return path


@pytest.fixture
def phased_path(tmp_path):
    path = tmp_path / "phased.json"
    save_loss(phased(total_steps=448), path)
    return path

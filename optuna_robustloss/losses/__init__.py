"""Losses: the searched family, hand-made ones to compare with, and the zoo. Needs torch only."""

from .polynomial import (
    MAE_THETA,
    MSE_THETA,
    canonical,
    canonical_names,
    equivalent,
    from_canonical,
)
from .range import loss_range
from .robust import GCELoss, MAELoss, ScaledLoss, SCELoss
from .taylor import TaylorLoss, taylor_loss
from .zoo import list_losses, load_loss

__all__ = [
    "MAE_THETA",
    "MSE_THETA",
    "GCELoss",
    "MAELoss",
    "SCELoss",
    "ScaledLoss",
    "TaylorLoss",
    "canonical",
    "canonical_names",
    "equivalent",
    "from_canonical",
    "list_losses",
    "load_loss",
    "loss_range",
    "taylor_loss",
]

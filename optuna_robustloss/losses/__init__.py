"""Losses: the searched family, hand-made ones to compare with, and the zoo. Needs torch only."""

from .base import ClassificationLoss
from .phased import PhasedLoss
from .published.asymmetric import AGCELoss, NCEandAGCELoss
from .published.corrected import BootstrapLoss, ForwardCorrectionLoss, LabelSmoothingLoss
from .published.elr import ELRLoss
from .published.epsilon_softmax import EpsilonSoftmaxLoss
from .published.gce_sce_mae import GCELoss, MAELoss, SCELoss
from .published.normalized import ANLCELoss, NCEandMAELoss, NCEandRCELoss, NCELoss
from .scaled import ScaledLoss
from .taylor.loss import TaylorLoss, taylor_loss
from .taylor.polynomial import (
    CONFIRM_THETA,
    MAE_THETA,
    MSE_THETA,
    canonical,
    canonical_names,
    equivalent,
    from_canonical,
)
from .taylor.range import loss_range
from .zoo import list_losses, load_loss

__all__ = [
    "CONFIRM_THETA",
    "MAE_THETA",
    "MSE_THETA",
    "AGCELoss",
    "ANLCELoss",
    "BootstrapLoss",
    "ClassificationLoss",
    "ELRLoss",
    "EpsilonSoftmaxLoss",
    "ForwardCorrectionLoss",
    "GCELoss",
    "LabelSmoothingLoss",
    "MAELoss",
    "NCELoss",
    "NCEandAGCELoss",
    "NCEandMAELoss",
    "NCEandRCELoss",
    "PhasedLoss",
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

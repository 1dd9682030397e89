"""Search for loss functions that are robust to label noise, and use the ones that were found.

``load_loss`` and the losses need PyTorch only; the rest is imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from optuna_robustloss.losses import (
    AGCELoss,
    ANLCELoss,
    BootstrapLoss,
    ELRLoss,
    EpsilonSoftmaxLoss,
    ForwardCorrectionLoss,
    GCELoss,
    LabelSmoothingLoss,
    MAELoss,
    NCEandAGCELoss,
    NCEandMAELoss,
    NCEandRCELoss,
    NCELoss,
    PhasedLoss,
    ScaledLoss,
    SCELoss,
    TaylorLoss,
    canonical,
    equivalent,
    list_losses,
    load_loss,
    loss_range,
    taylor_loss,
)

if TYPE_CHECKING:
    from optuna_robustloss.sampler.sampler import GenerationalCmaEsSampler
    from optuna_robustloss.search.objective import NoisyLabelObjective
    from optuna_robustloss.search.spec import StudySpec
    from optuna_robustloss.search.suggest import suggest_taylor_loss
    from optuna_robustloss.tasks.spec import TaskSpec

__all__ = [
    "AGCELoss",
    "ANLCELoss",
    "BootstrapLoss",
    "ELRLoss",
    "EpsilonSoftmaxLoss",
    "ForwardCorrectionLoss",
    "GCELoss",
    "GenerationalCmaEsSampler",
    "LabelSmoothingLoss",
    "MAELoss",
    "NCELoss",
    "NCEandAGCELoss",
    "NCEandMAELoss",
    "NCEandRCELoss",
    "NoisyLabelObjective",
    "PhasedLoss",
    "SCELoss",
    "ScaledLoss",
    "StudySpec",
    "TaskSpec",
    "TaylorLoss",
    "canonical",
    "equivalent",
    "list_losses",
    "load_loss",
    "loss_range",
    "suggest_taylor_loss",
    "taylor_loss",
]

_ON_DEMAND = {
    "GenerationalCmaEsSampler": "optuna_robustloss.sampler.sampler",
    "NoisyLabelObjective": "optuna_robustloss.search.objective",
    "StudySpec": "optuna_robustloss.search.spec",
    "TaskSpec": "optuna_robustloss.tasks.spec",
    "suggest_taylor_loss": "optuna_robustloss.search.suggest",
}


def __getattr__(name: str) -> Any:
    if name in _ON_DEMAND:
        return getattr(import_module(_ON_DEMAND[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

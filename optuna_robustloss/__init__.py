"""Search for loss functions that are robust to label noise, and use the ones that were found.

Each public name is imported when it is first used: the losses need PyTorch only, and the command
line answers without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna_robustloss.distributed.storage import open_storage
    from optuna_robustloss.losses import (
        AGCELoss,
        AMSELoss,
        ANLCELoss,
        BootstrapLoss,
        ELRLoss,
        EpsilonSoftmaxLoss,
        ForwardCorrectionLoss,
        GCELoss,
        JALCELoss,
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
        list_methods,
        load_loss,
        loss_range,
        make_loss,
        save_loss,
        taylor_loss,
    )
    from optuna_robustloss.sampler.sampler import GenerationalCmaEsSampler
    from optuna_robustloss.search.objective import NoisyLabelObjective
    from optuna_robustloss.search.spec import StudySpec
    from optuna_robustloss.search.study import create_study, open_study
    from optuna_robustloss.search.suggest import suggest_taylor_loss
    from optuna_robustloss.search.worker import run_worker
    from optuna_robustloss.tasks.spec import TaskSpec

    __version__: str

__all__ = [
    "AGCELoss",
    "AMSELoss",
    "ANLCELoss",
    "BootstrapLoss",
    "ELRLoss",
    "EpsilonSoftmaxLoss",
    "ForwardCorrectionLoss",
    "GCELoss",
    "GenerationalCmaEsSampler",
    "JALCELoss",
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
    "create_study",
    "equivalent",
    "list_losses",
    "list_methods",
    "load_loss",
    "loss_range",
    "make_loss",
    "open_storage",
    "open_study",
    "run_worker",
    "save_loss",
    "suggest_taylor_loss",
    "taylor_loss",
]

#: Modules of the names that are not in ``losses``.
_MODULES = {
    "GenerationalCmaEsSampler": "sampler.sampler",
    "NoisyLabelObjective": "search.objective",
    "StudySpec": "search.spec",
    "TaskSpec": "tasks.spec",
    "create_study": "search.study",
    "open_storage": "distributed.storage",
    "open_study": "search.study",
    "run_worker": "search.worker",
    "suggest_taylor_loss": "search.suggest",
}


def __getattr__(name: str) -> Any:
    """Import a public name, or read the version from the installed package's metadata."""
    if name == "__version__":
        from importlib.metadata import version

        return version("optuna-robustloss")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'losses')}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__, "__version__"]

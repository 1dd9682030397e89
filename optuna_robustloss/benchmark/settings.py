"""Settings of the methods, by data set and noise, as their authors' code and papers have them.

Under ``published`` a method takes the row of the task's data set. A data set without a row takes
CIFAR-100's from 100 classes on, else MNIST's for grey images (as KMNIST and digits are) and
CIFAR-10's for coloured ones; where the method has no such row, CIFAR-10's. Within a row a cell may
be for one kind of noise, and for one rate, of which the nearest is taken: pair-flip counts as
asymmetric, all noise that is neither (human labels, matrices) as symmetric. Methods without a row
have one setting for all data sets.

Under ``cifar10`` every task takes the defaults of the classes, which are CIFAR-10's with symmetric
noise, and from 100 classes on CIFAR-100's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from optuna_robustloss.tasks.prepare import Task

Settings = Literal["published", "cifar10"]


@dataclass(frozen=True)
class Cell:
    """Arguments of a method, and where they are published."""

    source: str
    values: Mapping[str, float]
    noise: Literal["symmetric", "asymmetric"] | None = None
    """The noise that the cell is for; None for all."""
    rate: float | None = None


_APL = "HanxunH/Active-Passive-Losses configs/{}.yaml"
_ANL = "Virusdoll/Active-Negative-Loss config/{}.json"
_ALF = "hitcszx/ALFs config.py"
_EPS = "cswjl/eps-softmax config.py"
_ELR = "shengliu66/ELR ELR/config_{}.json"
_JOCOR = "hongxin001/JoCoR {}"
#: SCE's log 0: its authors' code (``loss.py``) and that of APL clip labels at 1e-4.
_LOG_ZERO = math.log(1e-4)


def _apl(path: str, **values: float) -> tuple[Cell, ...]:
    return (Cell(_APL.format(path), values),)


def _eps(
    alpha: float, beta: float, m: float, noise: Literal["symmetric", "asymmetric"], rate: float
) -> Cell:
    return Cell(_EPS, {"alpha": alpha, "beta": beta, "m": m}, noise, rate)


#: By method and data set.
PUBLISHED: dict[str, dict[str, tuple[Cell, ...]]] = {
    "gce": {
        "mnist": _apl("mnist/sym/gce", q=0.7),
        "cifar10": _apl("cifar10/sym/gce", q=0.7),
        "cifar100": _apl("cifar100/sym/gce", q=0.7),
        "clothing1m": (Cell(_EPS, {"q": 0.6}),),
    },
    "sce": {
        "mnist": _apl("mnist/sym/sce", alpha=0.01, beta=1.0, A=_LOG_ZERO),
        "cifar10": _apl("cifar10/sym/sce", alpha=0.1, beta=1.0, A=_LOG_ZERO),
        "cifar100": _apl("cifar100/sym/sce", alpha=6.0, beta=0.1, A=_LOG_ZERO),
        "clothing1m": (Cell(_EPS, {"alpha": 10.0, "beta": 1.0, "A": _LOG_ZERO}),),
    },
    "nce": {
        "mnist": _apl("mnist/sym/nce", scale=10.0),
        "cifar10": _apl("cifar10/sym/nce", scale=1.0),
        "cifar100": _apl("cifar100/sym/nce", scale=1.0),
    },
    "nce+rce": {
        "mnist": _apl("mnist/sym/nce+rce", alpha=1.0, beta=10.0),
        "cifar10": _apl("cifar10/sym/nce+rce", alpha=1.0, beta=1.0),
        "cifar100": _apl("cifar100/sym/nce+rce", alpha=10.0, beta=0.1),
        "clothing1m": (Cell(_EPS, {"alpha": 10.0, "beta": 1.0}),),
    },
    "nce+mae": {
        "mnist": _apl("mnist/sym/nce+mae", alpha=1.0, beta=10.0),
        "cifar10": _apl("cifar10/sym/nce+mae", alpha=1.0, beta=1.0),
        "cifar100": _apl("cifar100/sym/nce+mae", alpha=10.0, beta=1.0),
    },
    "agce": {
        "mnist": (Cell(_ALF, {"a": 4.0, "q": 0.2}),),
        "cifar10": (Cell(_ALF, {"a": 0.6, "q": 0.6}),),
        "cifar100": (Cell(_ALF, {"a": 0.6, "q": 0.6}),),
        "clothing1m": (Cell(_EPS, {"a": 1e-5, "q": 0.5}),),
    },
    "nce+agce": {
        "mnist": (Cell(_ALF, {"alpha": 0.0, "beta": 1.0, "a": 4.0, "q": 0.2}),),
        "cifar10": (Cell(_ALF, {"alpha": 1.0, "beta": 4.0, "a": 6.0, "q": 1.5}),),
        "cifar100": (Cell(_ALF, {"alpha": 10.0, "beta": 0.1, "a": 1.8, "q": 3.0}),),
        "clothing1m": (Cell(_EPS, {"alpha": 50.0, "beta": 0.1, "a": 2.5, "q": 3.0}),),
    },
    "anl-ce": {
        "mnist": (Cell(_ANL.format("mnist_anl_ce"), {"alpha": 1.0, "beta": 1.0, "l1": 1e-6}),),
        "cifar10": (Cell(_ANL.format("cifar10_anl_ce"), {"alpha": 5.0, "beta": 5.0, "l1": 5e-5}),),
        "cifar100": (
            Cell(_ANL.format("cifar100_anl_ce"), {"alpha": 10.0, "beta": 1.0, "l1": 5e-7}),
        ),
    },
    # The authors' α at 60 % breaks the row as it stands in their file.
    "eps-softmax": {
        "cifar10": (
            Cell(_EPS, {"alpha": 0.01, "beta": 5.0, "m": 1e5}, "symmetric"),
            Cell(_EPS, {"alpha": 0.02, "beta": 5.0, "m": 1e3}, "asymmetric"),
        ),
        "cifar100": (
            _eps(0.1, 1.0, 1e4, "symmetric", 0.0),
            _eps(0.05, 1.0, 1e4, "symmetric", 0.2),
            _eps(0.03, 1.0, 1e4, "symmetric", 0.4),
            _eps(0.00125, 1.0, 1e4, "symmetric", 0.6),
            _eps(0.0075, 1.0, 1e4, "symmetric", 0.8),
            _eps(0.015, 1.0, 1e2, "asymmetric", 0.1),
            _eps(0.007, 1.0, 1e2, "asymmetric", 0.2),
            _eps(0.005, 1.0, 1e2, "asymmetric", 0.3),
            _eps(0.004, 1.0, 1e2, "asymmetric", 0.4),
        ),
        "clothing1m": (Cell(_EPS, {"alpha": 0.012, "beta": 0.1, "m": 1e3}),),
    },
    "elr": {
        "cifar10": (
            Cell(_ELR.format("cifar10"), {"beta": 0.7, "lam": 3.0}, "symmetric"),
            Cell(_ELR.format("cifar10_asym"), {"beta": 0.9, "lam": 1.0}, "asymmetric"),
        ),
        "cifar100": (Cell(_ELR.format("cifar100"), {"beta": 0.9, "lam": 7.0}),),
    },
    "jocor": {
        "mnist": (Cell(_JOCOR.format("main.py"), {"co_lambda": 0.1}),),
        "cifar10": (
            Cell(_JOCOR.format("README.md"), {"co_lambda": 0.9}, "symmetric", 0.2),
            Cell(_JOCOR.format("README.md"), {"co_lambda": 0.9}, "symmetric", 0.5),
            Cell(_JOCOR.format("README.md"), {"co_lambda": 0.65}, "symmetric", 0.8),
            Cell(_JOCOR.format("README.md"), {"co_lambda": 0.9}, "asymmetric"),
        ),
        "cifar100": (Cell(_JOCOR.format("README.md"), {"co_lambda": 0.85}),),
    },
}
#: What is not a loss under ``cifar10``; ``make_loss`` has that of losses.
_CIFAR10: dict[str, dict[str, float]] = {
    "elr": {"beta": 0.7, "lam": 3.0},
    "jocor": {"co_lambda": 0.9},
}


def published_cell(method: str, task: Task) -> Cell | None:
    """Return the published settings of a method on a task; None for a method with one setting."""
    rows = PUBLISHED.get(method)
    if rows is None:
        return None
    dataset = task.spec.dataset
    if dataset not in rows:
        grey = "mnist" if task.image_shape[0] == 1 else "cifar10"
        dataset = "cifar100" if task.num_classes >= 100 else grey
    cells = rows.get(dataset, rows["cifar10"])
    noise = task.spec.noise
    kind = "symmetric"
    if noise.kind == "pair-flip" or noise.kind.startswith("asymmetric"):
        kind = "asymmetric"
    fitting = [cell for cell in cells if cell.noise in (None, kind)]
    return min(fitting, key=lambda cell: abs((cell.rate or 0.0) - (noise.rate or 0.0)))


def method_values(method: str, task: Task, settings: Settings) -> Mapping[str, float] | None:
    """Return the arguments of a method on a task; None where ``make_loss`` has them.

    Args:
        method: its name, without a scale.
        task: gives data set, noise, channels and classes.
        settings: see the module.

    """
    if settings == "published":
        cell = published_cell(method, task)
        return cell.values if cell else None
    if method == "elr" and task.num_classes >= 100:
        return {"beta": 0.9, "lam": 7.0}
    return _CIFAR10.get(method)

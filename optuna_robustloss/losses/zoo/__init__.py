"""Losses found by search, shipped as JSON with their evidence.

Each file is named for the study that found it. A loss whose provenance says ``provisional`` has
not yet led scale-tuned controls on tasks it never saw.
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any

from .. import files
from ..phased import PhasedLoss
from ..taylor.loss import TaylorLoss


def list_losses() -> list[str]:
    """Names that ``load_loss`` knows, in alphabetical order."""
    folder = resources.files(__name__)
    return sorted(f.name.removesuffix(".json") for f in folder.iterdir() if f.name[-5:] == ".json")


def load_loss(
    name: str | Path, num_classes: int | None = None, **options: Any
) -> TaylorLoss | PhasedLoss:
    """Return a loss of the zoo by its name, or any loss file by its path.

    Args:
        name: one of ``list_losses()``, or the path of a JSON file (ending in ``.json``).
        num_classes: C of the task at hand; by default that of the task it was searched on.
        options: arguments of ``TaylorLoss`` that take the place of the stored ones, for example
            ``eta`` for another learning rate or length of training; for a loss with phases those
            of ``PhasedLoss.load``, for example ``total_steps``.

    Raises:
        ValueError: no loss has this name; the message lists those there are.
        FileNotFoundError: there is no such file.

    """
    if str(name).endswith(".json"):
        return _load(name, num_classes, **options)
    if name not in list_losses():
        close = get_close_matches(str(name), list_losses(), n=1)
        raise ValueError(
            f"there is no loss {str(name)!r}"
            + (f", did you mean {close[0]!r}?" if close else "")
            + f" The zoo has: {', '.join(list_losses()) or 'nothing yet'}; a file's path must "
            "end in .json"
        )
    with resources.as_file(resources.files(__name__) / f"{name}.json") as path:
        return _load(path, num_classes, **options)


def _load(path: str | Path, num_classes: int | None, **options: Any) -> TaylorLoss | PhasedLoss:
    kind = PhasedLoss if files.kind_of(path) == files.PHASED else TaylorLoss
    return kind.load(path, num_classes, **options)

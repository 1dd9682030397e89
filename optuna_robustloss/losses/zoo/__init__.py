"""Losses found by search, shipped as JSON with their evidence.

Each file is named for the study that found it. A loss whose provenance says ``provisional`` has
not yet led scale-tuned controls on tasks that its search did not use.
"""

from __future__ import annotations

from importlib import resources


def list_losses() -> list[str]:
    """Return the names of the shipped losses, which ``load_loss`` takes, in alphabetical order.

    >>> "ar_sym80" in list_losses()
    True

    """
    names = (file.name for file in resources.files(__name__).iterdir())
    return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))


def read_loss_text(name: str) -> str:
    """Return the JSON text of one of ``list_losses()``."""
    return resources.files(__name__).joinpath(f"{name}.json").read_text(encoding="utf-8")

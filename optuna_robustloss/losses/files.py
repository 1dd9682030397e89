"""The JSON file of a loss. Plain numbers and text: never a pickle."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

FORMAT = "optuna-robustloss/taylor-loss"
VERSION = 1


def write(path: str | Path, loss: dict[str, Any]) -> None:
    """Write ``loss`` beside its final name first, so that a crash leaves no half of a file."""
    path = Path(path)
    text = json.dumps({"format": FORMAT, "version": VERSION} | loss, indent=2, allow_nan=False)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(text + "\n", encoding="utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max  # so neither NaN nor infinite


def read(path: str | Path) -> dict[str, Any]:
    """Read and check a loss file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, of another kind or of a later version.

    """
    path = Path(path)
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no loss file {path}") from None
    except ValueError as error:  # not UTF-8, not JSON, an integer of thousands of digits
        raise ValueError(f"{path} is not a JSON file, or is damaged: {error}") from None
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        raise ValueError(f'{path} is not a loss file: it lacks "format": "{FORMAT}"')
    if stored.get("version") != VERSION:
        raise ValueError(
            f"{path} has version {stored.get('version')!r} of the loss format, this package "
            f"reads version {VERSION}: update optuna-robustloss"
        )
    theta = stored.get("theta")
    eta = stored.get("eta")
    alpha = stored.setdefault("cross_entropy_weight", 0.0)
    num_classes = stored.get("num_classes")
    wrong = {
        "theta": not (isinstance(theta, list) and len(theta) == 12 and all(map(_is_number, theta))),
        "num_classes": not isinstance(num_classes, int) or num_classes < 2,
        "eta": "eta" not in stored or not (eta is None or (_is_number(eta) and eta > 0)),
        "cross_entropy_weight": not (_is_number(alpha) and alpha >= 0),
        "variable": stored.setdefault("variable", "probability") not in ("probability", "log"),
        "provenance": not isinstance(stored.setdefault("provenance", {}), dict),
    }
    fields = [name for name, is_wrong in wrong.items() if is_wrong]
    if fields:
        raise ValueError(
            f"{path}: missing or wrong {', '.join(fields)}; export the loss again from its study"
        )
    return stored

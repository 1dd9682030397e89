"""Losses as JSON and back: the name of a known class and its arguments, never a pickle.

A file is the description of a loss (see ``describe_loss``) with three more fields: ``format``,
``version`` and ``provenance``.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from . import published
from .base import TASK_OPTIONS
from .json_files import parse_json, read_text, show_value
from .phased import PhasedLoss
from .scaled import ScaledLoss
from .taylor.loss import TaylorLoss
from .taylor.polynomial import canonical
from .zoo import list_losses, read_loss_text

FORMAT = "optuna-robustloss/loss"
VERSION = 1
#: Losses that are made for one training set: their tensors do not belong into a file.
_OF_ONE_TRAINING_SET = (published.ELRLoss, published.ForwardCorrectionLoss)
#: What a file can name. Each argument of these classes is an attribute of the same name.
CLASSES: dict[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (
        TaylorLoss,
        PhasedLoss,
        ScaledLoss,
        nn.CrossEntropyLoss,
        *(getattr(published, name) for name in published.__all__),
    )
    if kind not in _OF_ONE_TRAINING_SET
}
#: Losses inside losses.
_DEEPEST = 10
_DEPRECATED = ("size_average", "reduce")  # by PyTorch; no attributes


def save_loss(
    loss: nn.Module, path: str | Path, *, provenance: Mapping[str, Any] | None = None
) -> None:
    """Write a loss to a JSON file, whole or not at all.

    ``reduction``, ``ignore_index`` and ``weight`` are not written: they belong to a task.

    Args:
        loss: a ``TaylorLoss``, ``PhasedLoss``, ``ScaledLoss``, ``nn.CrossEntropyLoss`` or published
            loss, but for those of one training set (``ELRLoss``, ``ForwardCorrectionLoss``).
        path: the file, replaced if it exists.
        provenance: where the loss comes from, ready for JSON; by default its attribute
            ``provenance``, which ``load_loss`` sets.

    Raises:
        ValueError: the loss is of another class, or holds or comes with what JSON cannot hold.
        OSError: the file cannot be written; an existing one is unchanged.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_loss(published.GCELoss(q=0.5), f"{folder}/gce.json", provenance={"by": "me"})
    ...     loss = load_loss(f"{folder}/gce.json", reduction="sum")
    >>> loss.q, loss.reduction, loss.provenance
    (0.5, 'sum', {'by': 'me'})

    """
    if provenance is None:
        provenance = getattr(loss, "provenance", {})
    content = {"format": FORMAT, "version": VERSION} | describe_loss(loss)
    try:
        text = json.dumps(content | {"provenance": dict(provenance)}, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Cannot save {type(loss).__name__} to {path}: {error}") from None
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(text + "\n", encoding="utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def load_loss(name: str | Path, num_classes: int | None = None, **options: Any) -> nn.Module:
    """Return a shipped loss by its name, or the loss of a JSON file by its path.

    Args:
        name: one of ``list_losses()``, or the path of a file written by ``save_loss``: a ``Path``,
            or text that ends in ``.json``.
        num_classes: C of the task at hand; by default that of the file.
        options: ``reduction``, ``ignore_index`` and ``weight`` of the task; and arguments of the
            loss's class that replace the stored ones, such as ``eta`` of ``TaylorLoss`` or
            ``total_steps`` of ``PhasedLoss``.

    Returns:
        the loss, with the attribute ``provenance``: a dict, empty if nothing is known.

    Raises:
        ValueError: an unknown name (the message lists the known ones), a damaged file (it names
            the field), or an option that the loss does not have.
        FileNotFoundError: there is no such file.

    >>> criterion = load_loss("ar_sym80", num_classes=14, eta=1.0)
    >>> criterion.num_classes, criterion.eta, criterion.provenance["study"]
    (14, 1.0, 'ar_sym80')

    """
    if isinstance(name, Path) or name.endswith(".json"):
        text = read_text(name)
    elif name in list_losses():
        text = read_loss_text(name)
    else:
        close = get_close_matches(name[:100], list_losses(), n=1)
        raise ValueError(
            f"there is no loss {show_value(name)}"
            + (f", did you mean {close[0]!r}?" if close else "")
            + f" The shipped losses are: {', '.join(list_losses()) or 'none yet'}; the path of a "
            "file must end in .json"
        )
    where = show_value(str(name))[1:-1]
    description = _parse_file(text, where)
    provenance = description.pop("provenance", {})
    try:
        json.dumps(provenance, allow_nan=False)
    except ValueError:
        raise ValueError(f"{where}: provenance holds a number that is not finite") from None
    if not isinstance(provenance, dict):
        raise ValueError(f"{where}: provenance must be an object, got {show_value(provenance)}")
    loss = build_loss(description, where, num_classes=num_classes, **options)
    loss.provenance = provenance  # type: ignore[assignment]
    return loss


def describe_loss(loss: nn.Module) -> dict[str, Any]:
    """Return the class and the arguments of a loss, ready for JSON.

    Raises:
        ValueError: a class that is not in ``CLASSES``, or an argument that JSON cannot hold.

    >>> describe_loss(ScaledLoss(published.GCELoss(q=0.5), 0.2))
    {'class': 'ScaledLoss', 'criterion': {'class': 'GCELoss', 'q': 0.5}, 'scale': 0.2}

    """
    name = type(loss).__name__
    if type(loss) is not CLASSES.get(name):
        raise ValueError(f"Cannot save {name}: only {', '.join(CLASSES)} can be written to JSON")
    description: dict[str, Any] = {"class": name}
    for argument, kind in _arguments(type(loss)).items():
        value = getattr(loss, argument)
        if not _fits(value, kind):
            raise ValueError(
                f"Cannot save {name}: {argument} must be {_spell(kind)}, got {show_value(value)}"
            )
        if isinstance(value, nn.Module):
            value = describe_loss(value)
        description[argument] = list(value) if isinstance(value, tuple) else value
    if isinstance(loss, TaylorLoss):  # for readers of the file
        description["canonical"] = canonical(loss.theta, variable=loss.variable).tolist()
    return description


def build_loss(
    description: object,
    where: str,
    *,
    num_classes: int | None = None,
    _depth: int = 1,
    **options: Any,
) -> nn.Module:
    """Return the loss of a description made by ``describe_loss``.

    Args:
        description: any value read from JSON.
        where: file and field, for messages.
        num_classes: replaces the stored one in losses that have it.
        options: see ``load_loss``.

    Raises:
        ValueError: a damaged description, or an option that the loss does not have.

    """
    if not isinstance(description, dict) or not isinstance(description.get("class"), str):
        raise ValueError(f"{where} is not a loss: its class is missing")
    if _depth > _DEEPEST:
        raise ValueError(f"{where[:200]} … is nested too deeply: at most {_DEEPEST} losses")
    values = dict(description)
    name = values.pop("class")
    if name not in CLASSES:
        raise ValueError(
            f"{where} has the unknown class {show_value(name)}; known: {', '.join(CLASSES)}. A "
            "file of a later version needs a later optuna-robustloss"
        )
    if name == "TaylorLoss":
        values.pop("canonical", None)
    arguments = _arguments(CLASSES[name])
    if unknown := values.keys() - arguments.keys():
        raise ValueError(
            f"{where}: {name} has no argument {show_value(min(unknown))}; it has: "
            f"{', '.join(arguments)}"
        )
    if unknown := options.keys() - arguments.keys() - set(TASK_OPTIONS):
        raise ValueError(
            f"{min(unknown)} is not an option of {name} in {where}; its options: "
            f"{', '.join([*arguments, *TASK_OPTIONS])}"
        )
    task = {option: options[option] for option in TASK_OPTIONS if option in options}
    for argument, value in values.items():
        if arguments[argument] is nn.Module:
            inner = f"{where}, {argument}"
            values[argument] = build_loss(
                value, inner, num_classes=num_classes, _depth=_depth + 1, **task
            )
        elif not _fits(value, arguments[argument]):
            raise ValueError(
                f"{where}: {argument} of {name} must be {_spell(arguments[argument])}, "
                f"got {show_value(value)}"
            )
        elif type(value) is int and _fits(0.5, arguments[argument]):
            values[argument] = float(value) if abs(value) > 2**53 else value  # as tensors need
    if num_classes is not None and "num_classes" in arguments:
        values["num_classes"] = num_classes
    if not 0 <= values.get("label_smoothing", 0.0) <= 1:  # PyTorch says so at the first batch
        raise ValueError(
            f"{where}: label_smoothing must be in [0, 1], got {values['label_smoothing']}"
        )
    values |= {option: options[option] for option in options.keys() & arguments.keys()}
    if nn.Module not in arguments.values():  # otherwise its parts have the task's options
        values |= task
    try:
        return CLASSES[name](**values)
    except (ArithmeticError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{where}: {reason[:400]}") from None


def _parse_file(text: str, where: str) -> dict[str, Any]:
    """Return the description in the text of a file, its provenance included."""
    stored = parse_json(text, where)
    kind = stored.pop("format", None) if isinstance(stored, dict) else None
    if kind != FORMAT:
        raise ValueError(f'{where} is not a loss file: it lacks "format": "{FORMAT}"')
    version = stored.pop("version", None)
    if type(version) is not int or version != VERSION:
        raise ValueError(
            f"{where} has version {show_value(version)} of the loss format, this package reads "
            f"version {VERSION}: update optuna-robustloss"
        )
    found: dict[str, Any] = stored
    return found


def _arguments(kind: type[nn.Module]) -> dict[str, Any]:
    """Return the stored arguments of a class with their types."""
    hints = get_type_hints(kind.__init__)
    left_out = (*TASK_OPTIONS, "task", *_DEPRECATED)
    return {n: hints[n] for n in inspect.signature(kind).parameters if n not in left_out}


def _fits(value: object, kind: Any) -> bool:
    """Whether a value is of an argument's type; numbers fit into float32, tensors fit no type."""
    if get_origin(kind) in (Union, UnionType):
        return any(_fits(value, choice) for choice in get_args(kind))
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if get_origin(kind) is Sequence:
        (inner,) = get_args(kind)
        return isinstance(value, list | tuple) and all(_fits(item, inner) for item in value)
    if kind is float:
        finite = isinstance(value, int | float) and abs(value) <= torch.finfo(torch.float32).max
        return finite and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return kind is not Tensor and isinstance(value, kind)


def _spell(kind: Any) -> str:
    """Return an argument's type in words."""
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_spell(choice) for choice in get_args(kind) if choice is not Tensor)
    if get_origin(kind) is Literal:
        return f"one of {get_args(kind)}"
    if get_origin(kind) is Sequence:
        return "a list of numbers"
    names = {float: "a finite number", int: "an integer", bool: "true or false", NoneType: "null"}
    return names.get(kind, "a loss" if kind is nn.Module else f"a {kind.__name__}")

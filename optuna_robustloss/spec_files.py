"""Specs in YAML and in studies: one strict base model, one message for all errors, one hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from reprlib import Repr
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_args

from optuna.study import Study
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    model_validator,
)

from optuna_robustloss.attributes import SPEC
from optuna_robustloss.strict_yaml import read_yaml

T = TypeVar("T")
SpecT = TypeVar("SpecT", bound="SpecFile")
#: A list in YAML, or one item that stands for a list of one.
OneOrMany = Annotated[
    tuple[T, ...], BeforeValidator(lambda v: v if isinstance(v, list | tuple) else [v])
]
#: Characters of a value and of a message, and number of messages that an error shows.
_LONGEST_VALUE, _LONGEST_MESSAGE, _MOST_ERRORS = 100, 1000, 10
#: As many as Optuna's databases hold.
_LONGEST_NAME = 512
_REPR = Repr()
_REPR.maxstring = _REPR.maxother = _LONGEST_VALUE


class StrictModel(BaseModel):
    """An immutable model that refuses unknown keys, and truth values for numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_truth_values(cls, values: Any) -> Any:
        """Refuse true and false for numbers; pydantic reads them as 1 and 0."""
        if isinstance(values, Mapping):
            for name, field in cls.model_fields.items():
                kinds = {field.annotation, *get_args(field.annotation)}
                value = values.get(name)
                items = value if isinstance(value, list | tuple) else [value]
                if kinds & {int, float} and bool not in kinds and _has_bool(items):
                    raise ValueError(f"{name}: a number is expected, not true or false")
        return values


def check_name(name: str) -> str:
    """Raise a ValueError unless ``name`` can name a study: 1 to 512 printable characters."""
    if not (name.isprintable() and 0 < len(name) <= _LONGEST_NAME):
        raise ValueError(
            f"the name of a study has 1 to {_LONGEST_NAME} printable characters, got "
            f"{_REPR.repr(name)}"
        )
    return name


#: The name of a study, in a spec.
StudyName = Annotated[str, AfterValidator(check_name)]


class SpecFile(StrictModel):
    """A model that is read from a YAML file and identified by a hash."""

    #: What messages call such a file.
    file_kind: ClassVar[str] = "spec"
    #: Keys of other versions and of other kinds of files, with the advice for each.
    refused_keys: ClassVar[Mapping[str, str]] = {}
    #: Meaning of a stored spec from before a key whose default means something else.
    former_values: ClassVar[Mapping[str, Any]] = {}
    #: Keys whose values may hold a password and are not repeated in messages.
    secret_keys: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _refuse_keys(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            for key, advice in cls.refused_keys.items():
                if key in values:
                    raise ValueError(advice)
        return values

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Read and check a YAML file.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file is not YAML or exceeds a limit (see ``read_yaml``), or its values
                are wrong (see ``from_values``).

        """
        try:
            values = read_yaml(Path(path))
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no {cls.file_kind} {path}") from None
        return cls.from_values(values, str(path))

    @classmethod
    def from_values(cls, values: Any, source: str) -> Self:
        """Build a spec from plain values; ``source`` names them in messages.

        Raises:
            ValueError: one line with every wrong key, the values given and the values allowed.

        """
        if not isinstance(values, dict):
            raise ValueError(
                f"{source}: a {cls.file_kind} is a mapping of keys to values, not "
                f"{short_repr(values)}"
            )
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ValueError(f"{source}: {describe_errors(error, cls)}") from None

    @property
    def hash(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of the JSON, defaults left out.

        A key that a later version adds therefore does not change the hash of an older file, unless
        its default means something else than the older version: see ``former_values``.
        """
        values = self.model_dump(mode="json", exclude_defaults=True)
        for key, former in self.former_values.items():
            values[key] = getattr(self, key)
            if values[key] == former:
                del values[key]
        text = json.dumps(values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def differences(self, other: Self) -> list[str]:
        """Return ``key: own value / other value`` for each key in which two specs differ."""
        left, right = self.model_dump(mode="json"), other.model_dump(mode="json")
        return [f"{k}: {left[k]!r} / {right[k]!r}" for k in left if left[k] != right[k]]


def describe_errors(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """Return one line that names every wrong key, the reason and the value given.

    Args:
        error: raised by pydantic.
        model: lists its keys where a key is unknown.

    """
    secret = model.secret_keys if model and issubclass(model, SpecFile) else ()
    lines = []
    for item in error.errors(include_url=False, include_context=False):
        if item["type"] == "too_short" and item["input"]:
            continue  # the list is not empty: its items are wrong and have messages of their own
        where = _cut(repr(".".join(map(str, item["loc"])))[1:-1], _LONGEST_VALUE)
        message = " ".join(item["msg"].removeprefix("Value error, ").splitlines())
        message = _cut(message, _LONGEST_MESSAGE)
        if item["type"] == "extra_forbidden":
            known = ""
            if model and len(item["loc"]) == 1:
                required_first = sorted(
                    model.model_fields, key=lambda name: not model.model_fields[name].is_required()
                )
                known = f"; known keys: {', '.join(required_first)}"
            lines.append(f"unknown key '{where}'{known}")
        elif not where:
            lines.append(message)
        elif item["type"] == "missing" or item["loc"][0] in secret:
            lines.append(f"{where}: {message}")
        else:
            lines.append(f"{where}: {message} (got {short_repr(item['input'])})")
    more = len(lines) - _MOST_ERRORS
    return "; ".join(lines[:_MOST_ERRORS]) + (f"; and {more} more errors" if more > 0 else "")


def short_repr(value: Any) -> str:
    """Return the ``repr`` of a value for a message: at most 100 characters, in bounded time.

    >>> short_repr({"a": [1] * 10**6})
    "{'a': [1, 1, 1, 1, 1, 1, ...]}"
    """
    return _cut(_REPR.repr(value), _LONGEST_VALUE)


def _has_bool(items: Iterable[Any]) -> bool:
    return any(isinstance(item, bool) for item in items)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}…"


def stored_spec(study: Study, model: type[SpecT]) -> SpecT | None:
    """Return the spec that ``study`` carries, or None if it carries none.

    Raises:
        ValueError: the study carries a spec of another kind, or one that no longer reads.

    """
    source = f"the spec stored with study {study.study_name!r}"
    carried = SPEC.key in study.user_attrs  # looked up first: another process may be storing it
    stored = SPEC.read(study)
    if stored is None and carried:
        raise ValueError(f"{source} is damaged: use another study")
    if stored is None:
        return None
    values = stored.get("values")
    if isinstance(values, dict):
        values = {**model.former_values, **values}
    return model.from_values(values, source)


def store_spec(study: Study, spec: SpecFile) -> None:
    """Make ``study`` carry ``spec``, its hash and the version of this package."""
    SPEC.write(
        study,
        {
            "values": spec.model_dump(mode="json"),
            "hash": spec.hash,
            "version": version("optuna-robustloss"),
        },
    )


def check_spec(study: Study, spec: SpecFile) -> None:
    """Raise a ValueError with the differences if ``study`` carries another spec than ``spec``."""
    stored = stored_spec(study, type(spec))
    if stored is not None and stored.hash != spec.hash:
        raise ValueError(
            f"study {study.study_name!r} belongs to another spec (study / given): "
            f"{'; '.join(stored.differences(spec))}; use the study's own file or another "
            "--study-name"
        )

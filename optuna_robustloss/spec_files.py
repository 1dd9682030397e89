"""Study specs from files, with one clear message for all that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from optuna_robustloss.search.spec import StudySpec


def explain(error: ValidationError, model: type[BaseModel] = StudySpec) -> str:
    """Say in one line what is wrong with the values of a spec: which key, why, what was given."""
    lines = []
    for item in error.errors():
        if item["type"] == "too_short" and item["input"]:
            continue  # the list is not empty, its items are wrong and have their own message
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            known = ", ".join(model.model_fields)
            hint = f"; known keys: {known}" if len(item["loc"]) == 1 else ""
            lines.append(f"unknown key '{where}'{hint}")
        else:
            secret = item["loc"][:1] == ("source_studies",)  # may be a URL with a password
            given = "" if secret or item["type"] == "missing" else f" (got {item['input']!r})"
            message = item["msg"].removeprefix("Value error, ")
            lines.append(f"{where}: {message}{given}" if where else message)
    return "; ".join(lines)


def parse_spec(values: Any, source: str) -> StudySpec:
    """Build a spec from plain values, with one clear message for all that is wrong.

    Raises:
        ValueError: names ``source``, the keys, what is allowed and what was given.

    """
    if not isinstance(values, dict):
        raise ValueError(f"{source}: a study spec is a mapping of keys to values")
    if "methods" in values:
        raise ValueError(f"{source} is a benchmark: run it with 'optuna-robustloss benchmark'")
    try:
        spec = StudySpec.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{source}: {explain(error)}") from None
    spec.warn_if_unreliable()
    return spec


def load_spec(path: str | Path) -> StudySpec:
    """Read and check a YAML file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not YAML, or not a study spec; see ``parse_spec``.

    """
    return parse_spec(read_yaml(path, "study spec"), str(path))


def read_yaml(path: str | Path, what: str) -> Any:
    """Return what a YAML file holds.

    Raises:
        FileNotFoundError: there is no such file; the message calls it ``what``.
        ValueError: it is not YAML.

    """
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no {what} {path}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from None

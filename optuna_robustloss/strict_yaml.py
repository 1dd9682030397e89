"""Read YAML files of users: plain values by the rules of YAML 1.2, within limits.

PyYAML's loaders follow YAML 1.1, where ``1:30`` is 90, ``on`` is true, ``010`` is 8 and ``1e3`` is
text; they drop the first of two equal keys, and recurse as deep as a file nests. Here the values
are built from PyYAML's events by the core schema of YAML 1.2.2 (section 10.3.2).
"""

from __future__ import annotations

import math
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml.events import (
    AliasEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamStartEvent,
)

#: Limits of a file; the largest specs have 2 kB, 100 values and 4 levels.
MOST_BYTES, MOST_VALUES, DEEPEST = 100_000, 10_000, 20

_LONGEST_INT, _LONGEST_PROBLEM = 20, 200
_INT = re.compile(r"[-+]?[0-9]+")
_HEX_OR_OCTAL = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITY = re.compile(r"([-+]?)\.(inf|Inf|INF)")
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
}


def read_yaml(path: Path) -> Any:
    """Return the document of a YAML file as dicts, lists, text, numbers, booleans and None.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: one line that says what is wrong and, for the text, in which line: the path is
            no regular file, the file exceeds a limit, is not UTF-8, not YAML, or holds
            several documents, a key twice, a key that is no text, a tag, a merge key, or a number
            that YAML 1.1 reads otherwise or no 64-bit number holds.

    """
    if not stat.S_ISREG(path.stat().st_mode):  # first, as opening a FIFO waits for a writer
        kind = "directory" if path.is_dir() else "device or a pipe"
        raise ValueError(f"{path} is a {kind}, not a file")
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"{path} has more than {MOST_BYTES} bytes")
    try:
        return parse_yaml(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not YAML in UTF-8: byte {error.start} is wrong") from None
    except ValueError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None


def parse_yaml(text: str) -> Any:
    """Return the one document of a YAML text; see ``read_yaml``.

    >>> parse_yaml("{lr: 1e-3, name: no, sizes: [010]}")
    Traceback (most recent call last):
        ...
    ValueError: line 1: write 010 without leading zeros, or in quotes if it is text
    >>> parse_yaml("{lr: 1e-3, name: no, sizes: [10]}")
    {'lr': 0.001, 'name': 'no', 'sizes': [10]}
    """
    try:
        return _Parser(text).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(_cut(f"{where}{error.problem or error.context}")) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ValueError(
            f"line {line}: {error.reason}, U+{ord(text[error.position]):04X}"
        ) from None


class _Parser:
    """Builds values from events; stops at the first one that exceeds a limit."""

    def __init__(self, text: str) -> None:
        self._events: Iterator[Event] = yaml.parse(text, Loader=yaml.SafeLoader)
        self._values = 0
        #: Values by the names of their anchors, with the number of values in each.
        self._anchors: dict[str, tuple[Any, int]] = {}

    def document(self) -> Any:
        assert isinstance(next(self._events), StreamStartEvent)
        if not isinstance(next(self._events), DocumentStartEvent):
            return None
        value = self._value(next(self._events), 0)
        next(self._events)
        if isinstance(event := next(self._events), DocumentStartEvent):
            raise _error(event, "a second document begins; a file holds one")
        return value

    def _value(self, event: Event, depth: int) -> Any:
        before = self._values
        self._count(event, 1)
        if isinstance(event, AliasEvent):
            if event.anchor not in self._anchors:
                raise _error(event, f"the alias *{event.anchor} has no complete anchor before it")
            value, size = self._anchors[event.anchor]
            self._count(event, size)
            return value
        assert isinstance(event, ScalarEvent | CollectionStartEvent)
        if event.tag not in (None, "!"):
            raise _error(event, f"the tag {event.tag} is not allowed; write the plain value")
        if depth > DEEPEST:
            raise _error(event, f"values nest more than {DEEPEST} levels deep")
        if isinstance(event, ScalarEvent):
            value = _scalar(event)
        elif isinstance(event, SequenceStartEvent):
            value = []
            while not isinstance(item := next(self._events), SequenceEndEvent):
                value.append(self._value(item, depth + 1))
        else:
            value = {}
            while not isinstance(key := next(self._events), MappingEndEvent):
                name = _key(key, value)
                value[name] = self._value(next(self._events), depth + 1)
        if event.anchor:
            self._anchors[event.anchor] = value, self._values - before
        return value

    def _count(self, event: Event, values: int) -> None:
        self._values += values
        if self._values > MOST_VALUES:
            raise _error(event, f"the file has more than {MOST_VALUES} values, aliases expanded")


def _key(event: Event, mapping: dict[str, Any]) -> str:
    if not isinstance(event, ScalarEvent) or event.tag not in (None, "!"):
        raise _error(event, "a key is plain text")
    if event.value == "<<":
        raise _error(event, "merge keys (<<) are not allowed; write the values out")
    if event.value in mapping:
        raise _error(event, f"the key {event.value!r} is there twice; leave out one")
    return str(event.value)


def _scalar(event: ScalarEvent) -> Any:
    text = event.value
    if not event.implicit[0]:  # in quotes, or a block
        return text
    if text in _WORDS:
        return _WORDS[text]
    if match := _INFINITY.fullmatch(text):
        return float(f"{match[1]}inf")
    if _INT.fullmatch(text):
        if re.match("[-+]?0[0-9]", text):
            raise _error(event, f"write {text} without leading zeros, or in quotes if it is text")
        if len(text) > _LONGEST_INT or not -(2**63) <= int(text) < 2**63:
            raise _error(event, f"{text} is beyond 64 bits")
        return int(text)
    if _HEX_OR_OCTAL.fullmatch(text):
        return int(text, 0) if len(text) < 16 else text
    if _FLOAT.fullmatch(text):
        if math.isinf(float(text)):
            raise _error(event, f"{text} is beyond a float of 64 bits")
        return float(text)
    return text


def _error(event: Event, problem: str) -> ValueError:
    assert event.start_mark is not None
    return ValueError(_cut(f"line {event.start_mark.line + 1}: {problem}"))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_PROBLEM else f"{text[:_LONGEST_PROBLEM]}…"

"""YAML files of users: read by YAML 1.2, and refused in one line at once."""

import math
import os
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from optuna_robustloss.benchmark.spec import BenchmarkSpec
from optuna_robustloss.search.spec import StudySpec
from optuna_robustloss.spec_files import short_repr
from optuna_robustloss.strict_yaml import DEEPEST, MOST_BYTES, MOST_VALUES, parse_yaml, read_yaml

SPEC = "{name: s, datasets: digits, architectures: mlp2, noise: none, %s}"


def refused(text):
    with pytest.raises(ValueError, match=r".") as error:
        parse_yaml(text)
    message = str(error.value)
    assert message.isprintable()
    assert len(message) < 300
    return message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1:30", "1:30"),
        ("190:20:30", "190:20:30"),
        ("on", "on"),
        ("No", "No"),
        ("y", "y"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("=", "="),
        ("0o17", 15),
        ("0xff", 255),
        ("-12", -12),
        ("1e3", 1000.0),
        ("1E-3", 0.001),
        ("-.5", -0.5),
        ("2.", 2.0),
        ("-.inf", -math.inf),
        ("True", True),
        ("~", None),
        ("", None),
        ("'010'", "010"),
        ('"1e3"', "1e3"),
        ("! 12", 12),
        ("|\n  no\n", "no\n"),
    ],
)
def test_plain_values_follow_the_core_schema(text, value):
    assert parse_yaml(f"key: {text}") == {"key": value}
    assert type(parse_yaml(f"key: {text}")["key"]) is type(value)


def test_shipped_specs_read_as_by_pyyaml():
    for path in (Path(__file__).parents[1] / "studies").glob("*.yaml"):
        assert read_yaml(path) == yaml.safe_load(path.read_text())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' is there twice"),
        ("a:\n  b: 1\n  b: 1", "line 3: the key 'b' is there twice"),
        ("{1: 1, '1': 2}", "line 1: the key '1' is there twice"),
        ("a: 010", "line 1: write 010 without leading zeros, or in quotes"),
        ("a: " + "9" * 5000, "line 1: 999"),
        ("a: 9223372036854775808", "is beyond 64 bits"),
        ("a: 1e999", "1e999 is beyond a float of 64 bits"),
        ("a: &x {b: 1}\nc: {<<: *x}", "line 2: merge keys (<<) are not allowed"),
        ("a: !!python/object/apply:os.system [echo]", "line 1: the tag tag:yaml.org,2002:python"),
        ("a: !!int 3", "the tag tag:yaml.org,2002:int is not allowed"),
        ("? [a]\n: 1", "line 1: a key is plain text"),
        ("a: 1\n---\nb: 1", "line 2: a second document begins"),
        ("a: *x", "line 1: the alias *x has no complete anchor before it"),
        ("a: &x [*x]", "line 1: the alias *x has no complete anchor before it"),
        ("a: [1", "line 1: expected ',' or ']'"),
        ("a:\n\tb: 1", "line 2: found character '\\t'"),
        ("a: \0", "line 1: special characters are not allowed, U+0000"),
        ("a: 1\n\x1b[31m", "line 2: special characters are not allowed, U+001B"),
        ("a: " + "[" * 3000 + "]" * 3000, "values nest more than 20 levels deep"),
        ("- " * 3000, "values nest more than 20 levels deep"),
        ("a: !" + "x" * 9000 + " 1", "the tag !xxx"),
        ("a: *" + "x" * 9000, "the alias *xxx"),
    ],
)
def test_what_is_ambiguous_or_hostile_is_one_line_with_its_number(text, message):
    assert message in refused(text)


def test_aliases_count_as_what_they_stand_for():
    """A billion values in nine lines are refused before they are built."""
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
    )
    before = time.process_time()
    assert f"more than {MOST_VALUES} values, aliases expanded" in refused(bomb)
    assert time.process_time() - before < 5
    assert parse_yaml("{a: &x [1, 2], b: *x}") == {"a": [1, 2], "b": [1, 2]}
    assert refused("[" + "1," * MOST_VALUES + "]").startswith("line 1: the file has more than")
    assert parse_yaml("[" * DEEPEST + "]" * DEEPEST)


def test_files_that_are_not_text_of_bounded_size_are_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "latin").write_bytes("name: ü".encode("latin-1"))
    (tmp_path / "utf16").write_text("name: a", encoding="utf-16")
    (tmp_path / "large").write_bytes(b"#" * (MOST_BYTES + 1))
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    for name, reason in {
        ".": "is a directory",
        "fifo": "is a device or a pipe",
        "/dev/zero": "is a device or a pipe",
        "latin": "is not YAML in UTF-8: byte 6",
        "utf16": "is not YAML in UTF-8: byte 0",
        "large": "has more than 100000 bytes",
        "sparse": "has more than 100000 bytes",
    }.items():
        with pytest.raises(ValueError, match=reason):
            StudySpec.from_yaml(tmp_path / name)
    (tmp_path / "bom").write_bytes(b"\xef\xbb\xbfname: a")
    assert read_yaml(tmp_path / "bom") == {"name": "a"}


def test_values_in_messages_are_cut_and_counted(tmp_path):
    path = tmp_path / "s.yaml"
    for text in (
        SPEC % ("popsize: [" + ", ".join(["x" * 50] * 1000) + "]"),
        SPEC % ("popsize: " + "x" * 90_000),
        SPEC % ", ".join(f"key{i}: 1" for i in range(3000)),
        "name: " + "[" * 19 + "]" * 19,
        "- 1\n" * 1000,
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"s\.yaml: ") as error:
            StudySpec.from_yaml(path)
        assert len(str(error.value)) < 6000
        assert "\n" not in str(error.value)
    recursive = []
    recursive.append(recursive)
    assert len(short_repr(recursive)) <= 101
    assert len(short_repr("x" * 10**6)) <= 101


def test_a_number_is_no_truth_value(tmp_path):
    path = tmp_path / "s.yaml"
    for item in ("popsize: true", "train: true", "sigma0: true", "prune_at: [true]", "seed: false"):
        path.write_text(SPEC % item)
        with pytest.raises(ValueError, match=f"{item.partition(':')[0]}: .*true or false"):
            StudySpec.from_yaml(path)
    path.write_text(SPEC % "popsize: 1:30")
    with pytest.raises(ValueError, match=r"popsize: .*got '1:30'"):
        StudySpec.from_yaml(path)
    path.write_text(SPEC % "lr_adapt: yes, recipe: {lr: 1e-3}")
    spec = StudySpec.from_yaml(path)
    assert (spec.lr_adapt, spec.tasks[0].recipe.lr) == (True, 0.001)


# --- Fuzzing ---

PIECES = [
    *("a", "name", "datasets", "digits", "noise", "symmetric:0.4", "popsize", "recipe", "tasks"),
    *(": ", "- ", "? ", "\n", "\n  ", "\n    ", "{", "}", "[", "]", ", ", "'", '"', "|", ">", "#"),
    *("&x ", "*x", "!!int ", "!x", "<<", "---\n", "...\n", "%YAML 1.1\n", "\t", "\0", "\ufeff"),
    *("1:30", "010", "1e999", "0x1", ".inf", ".nan", "~", "yes", "9" * 30, "é", "\u2028", "\x85"),
]
SETTINGS = {"deadline": None, "derandomize": True, "database": None}


def check_bytes(content, folder):
    """A file of any content is a spec, or one ValueError of one line."""
    path = folder / "fuzz.yaml"
    path.write_bytes(content)
    for kind in (StudySpec, BenchmarkSpec):
        message = ""
        try:
            kind.from_yaml(path)
        except ValueError as error:
            message = str(error)
        assert "\n" not in message
        assert len(message) < 6000


contents = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=30).map(lambda pieces: "".join(pieces).encode()),
    st.binary(max_size=60),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(PIECES), inner),
        max_leaves=12,
    ).map(lambda value: yaml.dump(value, allow_unicode=True).encode("utf-8", "replace")),
)


@settings(max_examples=200, **SETTINGS)
@given(content=contents)
def test_any_bytes_are_a_spec_or_one_error(content, tmp_path_factory):
    check_bytes(content, tmp_path_factory.getbasetemp())


@pytest.mark.slow
@settings(max_examples=3000, **SETTINGS)
@given(content=contents)
def test_many_more_bytes_are_a_spec_or_one_error(content, tmp_path_factory):
    check_bytes(content, tmp_path_factory.getbasetemp())

"""The command line under arguments and files of any kind: one message, and nothing stored."""

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cli.commands import SPEC, invoke

#: Each command with arguments that name no study, and its own options.
COMMANDS = {
    "search bad.yaml": ["--out", "--trials", "--workers", "--candidates", "--seeds", "--threads"],
    "init none.yaml": [],
    "work --storage sqlite:///no.db --study-name s": ["--spec", "--trials", "--workers", "--lease"],
    "status s": ["--lease"],
    "export s s.json": ["--threads"],
    "evaluate bad.json --task digits,mlp2": [
        *("--task", "--train", "--epochs", "--batch-size", "--lr", "--seeds", "--json")
    ],
    "benchmark bad.yaml --out out": ["--horizon", "--schedule", "--only", "--together", "--lease"],
    "features bad.yaml a.html --task mlp2": ["--task", "--method", "--images"],
}
COMMON = ["--storage", "--study-name", "--root", "--device", "--threads", "--help"]
VALUES = [
    *(
        "1",
        "2",
        "1.5",
        "0",
        "-1",
        "nan",
        "inf",
        "-inf",
        "1e400",
        str(10**30),
        "",
        " ",
        "--",
        "-",
        ".",
        "..",
        "/",
    ),
    *("x" * 300, "x" * 5000, "../up", "a/b", "no/a.json", "/dev/null", "/dev/zero", "a\0b", "a\nb"),
    *("\x1b[31m", "\udc80", "größe", "100%", "?", "#", "@", "ce@", "ce*", "ce*best", "gce@nan"),
    *("ce" + "*1" * 300, "sqlite:///", "sqlite:///no/x.db", "journal:", "journal:no/x", "grpc://"),
    *("mysql+pymysql://", "oracle://a:b@c/d", "digits,mlp2,none", "digits,mlp2,none:nan", ",,"),
    *("bad.yaml", "folder", "none.yaml", "bad.json", "mlp2", "cpu", "cuda:99", "meta"),
]
#: None of them is a spec or a loss: any combination of arguments fails, or shows the help.
BAD_FILES = {
    "bad.yaml": b"name: s\nname: s\n",
    "bad.json": b"[" * 5000,
    "folder/empty": b"",
}
SETTINGS = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture],
}


@st.composite
def command_lines(draw):
    command = draw(st.sampled_from(list(COMMANDS)))
    value = st.sampled_from(VALUES) | st.text(max_size=6)
    line = command.split()
    if draw(st.integers(0, 3)) == 0:
        line = [line[0], *draw(st.lists(value, max_size=2))]
    for option in draw(st.lists(st.sampled_from([*COMMANDS[command], *COMMON]), max_size=3)):
        line += [option, draw(value)]
    return line


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "folder").mkdir()
    for name, content in BAD_FILES.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def listing(folder):
    return {path: path.stat().st_size for path in folder.rglob("*")}


def check_refused(line, folder):
    """No traceback: a message on standard error and a non-zero exit, or the help; no new file."""
    before = listing(folder)
    result = invoke(*line)
    if result.exit_code == 0:
        assert "--help" in line
    else:
        assert result.exit_code == 2, (line, result.output, result.exception)
        assert "error: " in result.stderr.lower(), line
        assert "Traceback" not in result.stderr
        assert len(result.stderr) < 12_000
    assert listing(folder) == before, line
    assert os.getcwd() == str(folder)


@settings(max_examples=150, **SETTINGS)
@given(line=command_lines())
def test_any_command_line_is_refused_with_a_message(line, folder):
    check_refused(line, folder)


@pytest.mark.slow
@settings(max_examples=2000, **SETTINGS)
@given(line=command_lines())
def test_many_more_command_lines_are_refused_with_a_message(line, folder):
    check_refused(line, folder)


#: A value of each kind that no key of a spec takes.
WRONG = [True, -1, float("nan"), 10**18, "x" * 300, [], {}, [[]], {"a": {}}, None, "no", "\x1b[31m"]


@settings(max_examples=25, **SETTINGS)
@given(key=st.sampled_from(sorted({*SPEC, "seed", "sigma0", "prune_at", "source_studies", "x"})))
def test_a_wrong_value_in_a_spec_is_refused_before_anything_is_stored(key, folder):
    for value in WRONG:
        Path("bad.yaml").write_text(yaml.safe_dump(SPEC | {key: value, "train": -1}))
        check_refused(["init", "bad.yaml"], folder)

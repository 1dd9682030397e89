"""What reaches the terminal: after the results, escaped, and whatever the stream can take."""

import json
import logging
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from contextlib import closing, contextmanager
from pathlib import Path

import optuna
import pytest
import yaml
from support.waiting import LIMIT

from cli.commands import SPEC, invoke, run
from optuna_robustloss.cli import search_result
from optuna_robustloss.cli.console import clear_errors, print_lines, printable
from optuna_robustloss.losses import load_loss

HOSTILE = "\x1b[31mRED\x1b]0;title\x07\u202e"


def python(code, *arguments, env=None, **streams):
    """Python code in a process of its own; its output as bytes."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | (env or {}),
        timeout=LIMIT,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams,
    )


@contextmanager
def ended_reader():
    """The writing end of a pipe that nothing reads."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


# --- Escapes ---


def test_control_characters_are_escaped():
    assert printable(HOSTILE) == r"\x1b[31mRED\x1b]0;title\x07\u202e"
    assert printable("ü ± ━ 中\nb") == "ü ± ━ 中 b"
    assert printable("\udc80\x00\r") == r"\udc80\x00\r"


def test_names_and_attributes_from_a_database_are_escaped(spec, database):
    run("init", spec, "--storage", database, "--study-name", "a")
    path = database.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path)) as connection, connection:  # as another client may
        connection.execute("UPDATE studies SET study_name = ?", (HOSTILE,))
    study = optuna.load_study(study_name=HOSTILE, storage=database)
    trial = study._storage.create_new_trial(study._study_id)
    lease = [time.time() + 1e6, "x", 1, 1]
    study._storage.set_trial_system_attr(trial, "generational-cma:lease", lease)
    study._storage.set_trial_user_attr(trial, "worker", f"{HOSTILE}\nfake")
    shown = run("status", "--storage", database, "--", HOSTILE)
    assert r"\x1b[31mRED" in shown
    assert "fake (trial 0)" in shown
    wrong = invoke("status", "--storage", database, "--", f"{HOSTILE}2").output
    assert wrong.startswith("error: there is no study")
    for text in (shown, wrong):
        assert printable(text) == text.replace("\n", " ")


def test_errors_warnings_and_logs_are_one_escaped_line(spec, capsys):
    run("init", spec)  # sets the process up
    with pytest.raises(Exception, match="2"), clear_errors():
        raise ValueError(f"one\n{HOSTILE}")
    logging.lastResort.emit(logging.makeLogRecord({"msg": HOSTILE, "levelno": logging.ERROR}))
    print(warnings.formatwarning(HOSTILE, UserWarning, "a.py", 1), end="", file=sys.stderr)
    assert capsys.readouterr().err.splitlines() == [
        f"error: one {printable(HOSTILE)}",
        printable(HOSTILE),
        f"warning: {printable(HOSTILE)}",
    ]


# --- Results first ---


def test_results_are_saved_before_anything_is_printed(spec, monkeypatch):
    """A console that fails leaves the loss and the figures."""

    def fail(*_, **__):
        raise OSError("no terminal")

    for name, arguments in {
        "generation_table": ["search", spec, "--seeds", "0"],
        "losses_table": [
            *("evaluate", "ce", "--task", "digits,mlp2", "--train", "100", "--epochs", "1"),
            *("--seeds", "1", "--json", "figures.json"),
        ],
    }.items():
        monkeypatch.setattr(search_result, name, fail)
        assert invoke(*arguments).stderr == "error: no terminal\n"
    assert load_loss("small.json").provenance["study"] == "small"
    assert json.loads(Path("figures.json").read_text())["results"]


@pytest.mark.slow
def test_a_search_goes_on_and_is_saved_when_its_reader_has_ended():
    Path("s.yaml").write_text(yaml.safe_dump(SPEC | {"recipe": {"epochs": 1}}))
    with ended_reader() as writer:
        done = python(
            "from optuna_robustloss.cli.app import main; main()",
            *("search", "s.yaml", "--seeds", "0"),
            stdout=writer,
            env={"PYTHONIOENCODING": "ascii"},
        )
    assert (done.returncode, done.stderr) == (141, b"")  # as of a shell's tools
    assert load_loss("small.json").provenance["trials"] == 4


def test_any_stream_takes_the_output():
    """Characters are replaced; a stream that cannot be written does not interrupt the work."""
    code = (
        "import sys; from optuna_robustloss.cli import streams; streams.guard_streams();"
        "[print('±━', i, flush=True) for i in range(9)]; open('done', 'w').close();"
        "streams.exit_process(int(sys.argv[1]))"
    )
    for encoding, shown in {"ascii": b"??", "latin-1": b"\xb1?", "utf-8": "±━".encode()}.items():
        done = python(code, "0", env={"PYTHONIOENCODING": encoding})
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.startswith(shown + b" 0")
    for given, code_of_pipe, code_of_disk in (("0", 141, 1), ("2", 2, 2)):
        with ended_reader() as writer:
            done = python(code, given, stdout=writer)
            assert (done.returncode, done.stderr) == (code_of_pipe, b"")
        with open("/dev/full", "wb") as full:
            done = python(code, given, stdout=full)
        assert done.returncode == code_of_disk
        assert done.stderr == b"error: cannot write the output: No space left on device\n"
    Path("done").unlink()
    script = 'exec "$0" -c "$1" 0 >&- 2>&-'
    assert subprocess.run(["sh", "-c", script, sys.executable, code]).returncode == 0
    assert Path("done").exists()


@pytest.mark.parametrize("columns", ["0", "1", "7", "nonsense", "100000"])
def test_terminals_of_any_width_show_a_table(spec, monkeypatch, columns):
    run("init", spec)
    monkeypatch.setenv("COLUMNS", columns)
    assert run("status", "small")


# --- The end ---


def test_the_process_ends_while_threads_and_servers_hold():
    """It waits neither for a thread that is no daemon nor for a server that never answers."""
    server = socket.create_server(("127.0.0.1", 0))
    code = (
        "import threading, socket, sys; from optuna_robustloss.cli.app import main;"
        f"s = socket.create_connection(('127.0.0.1', {server.getsockname()[1]}));"
        "threading.Thread(target=s.recv, args=(1,)).start();"
        "import multiprocessing.resource_tracker as r; r.ensure_running();"
        "main()"
    )
    done = python(code, "status", "--typo")
    assert done.returncode == 2, done.stderr  # and no process holds its pipes any more
    assert b"No such option: --typo" in done.stderr
    server.close()


def test_no_thread_outlives_a_command(spec):
    before = set(threading.enumerate())
    run("search", spec, "--seeds", "0", "--trials", "2")
    left = {thread.name for thread in set(threading.enumerate()) - before if not thread.daemon}
    assert left == set()


def test_lines_are_printed_as_they_are(capsys):
    print_lines("[bold]a[/bold] :smile: " + "x" * 300)
    assert capsys.readouterr().out == "[bold]a[/bold] :smile: " + "x" * 300 + "\n"

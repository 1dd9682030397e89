"""The command in processes of its own, its help, and its version."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from cli.commands import SPEC, invoke, refused, run, trials
from optuna_robustloss.benchmark import trainings
from optuna_robustloss.cli import options
from optuna_robustloss.distributed import lease
from optuna_robustloss.losses import load_loss


def test_a_search_by_two_processes_is_one_study(spec):
    printed = run("search", spec, "--seeds", "0", "--workers", "2", "--trials", "2")
    assert printed.splitlines()[-1] == "2 of 4 trials are done"
    assert len({t.user_attrs["worker"] for t in trials("sqlite:///small.db") if t.params}) == 2
    run("search", spec, "--seeds", "0")
    assert load_loss("small.json").provenance["trials"] == 4


def test_a_study_of_optunas_own_command_is_worked_on_with_a_spec(spec, database):
    optuna_command = [sys.executable, "-c", "from optuna.cli import main; main()"]
    options = ["--storage", database, "--study-name", "theirs", "--direction", "maximize"]
    made = subprocess.run(
        [*optuna_command, "create-study", *options], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    worker = ["work", "--storage", database, "--study-name", "theirs"]
    assert "has no spec yet" in refused(*worker)
    run(*worker, "--spec", spec, "--trials", "1")
    run(*worker, "--trials", "1")
    assert [t.state.name for t in trials(database, "theirs")] == ["COMPLETE"] * 2


def test_missing_data_are_one_message_of_all_workers(database):
    Path("mnist.yaml").write_text(yaml.safe_dump(SPEC | {"datasets": ["mnist"]}))
    run("init", "mnist.yaml", "--storage", database)
    worker = ["work", "--storage", database, "--study-name", "small", "--root", "no"]
    assert "mnist" in refused(*worker, "--workers", "3")
    assert trials(database) == []


def test_without_a_command_the_help_is_shown():
    result = invoke()
    for command in ("search", "init", "work", "status", "export", "evaluate", "--show-completion"):
        assert command in result.output


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--version"], 0, version("optuna-robustloss")),
        (["search", "--help"], 0, "--candidates"),
        (["benchmark", "x.yaml", "--ot", "out"], 2, "No such option"),
    ],
)
def test_help_version_and_a_mistyped_option_need_no_pytorch(arguments, code, text):
    """They answer in a fresh process into which no heavy package may be imported."""
    names = ["torch", "optuna", "numpy", "rich", "yaml"]
    blocked = f"import sys; sys.modules.update(dict.fromkeys({names}))"
    command = f"{blocked}; import runpy; runpy.run_module('optuna_robustloss', run_name='__main__')"
    result = subprocess.run([sys.executable, "-c", command, *arguments], capture_output=True)
    assert result.returncode == code, result.stderr.decode()
    assert text in (result.stdout + result.stderr).decode()


def test_defaults_that_help_shows_are_those_of_the_package():
    assert options.LEASE == lease.LEASE
    assert options.TOGETHER == trainings.TOGETHER

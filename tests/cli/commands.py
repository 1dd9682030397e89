"""Run commands in this process, and what they work on."""

from functools import cache

import optuna
from typer import testing

from optuna_robustloss.cli.app import app

SPEC = {
    "name": "small",
    "datasets": ["digits"],
    "architectures": ["mlp2"],
    "noise": "symmetric:0.4",
    "recipe": {"epochs": 2, "batch_size": 16, "optimizer": "adam", "lr": 0.003, "momentum": 0},
    "train": 120,
    "validation": 100,
    "popsize": 4,
    "generations": 1,
    "finalists": 1,
}
TASK = ["--task", "digits,mlp2,symmetric:0.4", "--train", "120", "--epochs", "2", "--seeds", "2"]


# The commands are built once: that costs more than most of them.
testing._get_command = cache(testing._get_command)


def invoke(*arguments):
    return testing.CliRunner().invoke(app, [str(a) for a in arguments])


def run(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def refused(*arguments):
    """The message to wrong input: one, without a traceback, and exit code 2."""
    result = invoke(*arguments)
    assert result.exit_code == 2, (result.output, result.exception)
    assert "Traceback" not in result.output
    assert result.stderr.lower().count("error:") == 1
    return result.stderr.rpartition("rror: ")[2].strip()


def trials(url, name="small"):
    return optuna.load_study(study_name=name, storage=url).trials

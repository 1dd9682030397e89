"""Wrong input is one message, before anything is stored."""

from pathlib import Path

import pytest
import yaml

from cli.commands import SPEC, TASK, invoke, refused, run, trials
from optuna_robustloss.search.spec import StudySpec


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"epochs": 3}, ["unknown key 'epochs'", "known keys: datasets, architectures"]),
        ({"recipe": {"epoch": 3}}, ["unknown key 'epoch'", "known keys: optimizer"]),
        ({"architectures": ["mlp9"]}, ["unknown network 'mlp9'"]),
        ({"datasets": ["digitz"]}, ["unknown data set 'digitz'", "digits"]),
        ({"train": 100_000}, ["lower 'train' or 'validation'"]),
        ({"noise": "human:worse_label"}, ["human labels exist for cifar10"]),
    ],
)
def test_a_wrong_spec_is_refused_before_a_database_is_made(changes, parts):
    Path("wrong.yaml").write_text(yaml.safe_dump(SPEC | changes))
    message = refused("search", "wrong.yaml")
    assert all(part in message for part in parts), message
    assert list(Path().glob("*.db")) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "none.yaml"], "there is no study spec none.yaml"),
        (["search", "."], "directory"),
        (["search", "small.yaml", "--storage", "small.db"], "'small.db' is not a storage URL"),
        (["search", "small.yaml", "--storage", "sqlite:///no/small.db"], "cannot open the storage"),
        (
            ["search", "small.yaml", "--out", "no/small.json"],
            "there is no directory 'no'",
        ),
        (["search", "small.yaml", "--device", "gpu9"], "device 'gpu9' cannot be used"),
        (["search", "small.yaml", "--device", "meta"], "device 'meta' cannot be used"),
        (["search", "small.yaml", "--trials", "0"], "Invalid value for '--trials'"),
        (["search", "small.yaml", "--threads", "0"], "Invalid value for '--threads'"),
        (["search", "small.yaml", "--candidates", "0"], "Invalid value for '--candidates'"),
        (["search", "small.yaml", "--workers", "0"], "Invalid value for '--workers'"),
        (
            ["search", "small.yaml", "--workers", "2", "--storage", "sqlite:///:memory:"],
            "a database in memory cannot be shared",
        ),
        (["search", "small.yaml", "--workers", "1000000000"], "Invalid value for '--workers'"),
        (["search", "small.yaml", "--threads", "1000000000"], "Invalid value for '--threads'"),
        (["search", "small.yaml", "--seeds", "-1"], "Invalid value for '--seeds'"),
        (["work", "--storage", "sqlite:///small.db"], "Missing option '--study-name'"),
        (["work", "--storage", "sqlite:///s.db", "--study-name", "a"], "there is no database s.db"),
        (["status", "small"], "there is no database small.db"),
        (["status", "small", "--lease", "0"], "Invalid value for '--lease'"),
        (["status", "small", "--lease", "nan"], "Invalid value for '--lease'"),
        (["status", "small", "--lease", "inf"], "Invalid value for '--lease'"),
        (["work", "--study-name", "a", "--candidates", "0"], "Invalid value for '--candidates'"),
        (["export", "small", "."], "'.' cannot be written: it is a directory"),
        (["export", "small", "small.json"], "there is no database small.db"),
        (["evaluate", "gec", *TASK], "unknown loss 'gec', did you mean 'gce'?"),
        (["evaluate", "none.json", *TASK], "there is no loss file none.json"),
        (["evaluate", "gce*two", *TASK], "'two' in the loss 'gce*two' is not a number"),
        (["evaluate", "ce*best", *TASK], "needs validation images"),
        (["evaluate", "ce", "--task", "digits"], "a task is DATASET,ARCHITECTURE[,NOISE]"),
        (["evaluate", "ce", "--task", "digits,mlp9"], "unknown network 'mlp9'"),
        (["evaluate", "ce", "--task", "digits,mlp2,symetric:0.4"], "(got 'symetric')"),
        (["evaluate", "ce", *TASK, "--batch-size", "0"], "batch_size: Input should be greater"),
        (["evaluate", "ce", *TASK, "--epochs", "0"], "epochs: Input should be greater"),
        (["evaluate", "ce", *TASK, "--lr", "nan"], "lr: Input should be"),
        (["evaluate", "ce", *TASK, "--lr", "-inf"], "lr: Input should be"),
        (["evaluate", "ce", *TASK, "--train", "-5"], "train: Input should be greater"),
        (["evaluate", "ce", *TASK, "--seed", "-1"], "seed: Input should be greater"),
        (["evaluate", "ce", *TASK, "--seeds", "0"], "Invalid value for '--seeds'"),
        (["evaluate", "ce", *TASK, "--json", "no/f.json"], "'no/f.json' cannot be written"),
        (["evaluate", "ce", "--task", "mnist,mlp2", "--root", "no"], "mnist"),
    ],
)
def test_wrong_input_is_one_line_and_stores_nothing(spec, arguments, message):
    shown = refused(*arguments)
    assert message in shown
    assert "\n" not in shown
    assert [path.name for path in Path().iterdir()] == ["small.yaml"]


def test_a_password_is_not_shown(spec):
    message = refused("init", spec, "--storage", "oracel://user:secret@host/db")
    assert "oracel://user:***@host/db" in message
    assert "secret" not in message


def test_another_spec_of_the_same_name_is_refused(spec):
    run("init", spec)
    Path("other.yaml").write_text(yaml.safe_dump(SPEC | {"seed": 1}))
    assert "'small' belongs to another spec (study / given): seed: 0 / 1" in refused(
        "search", "other.yaml"
    )
    assert trials("sqlite:///small.db") == []


def test_an_interrupt_before_the_work_is_one_word(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(StudySpec, "from_yaml", interrupt)
    result = invoke("search", "small.yaml")
    assert (result.exit_code, result.output) == (130, "stopped\n")


def test_errors_keep_their_traceback_for_debugging(monkeypatch):
    monkeypatch.setenv("OPTUNA_ROBUSTLOSS_DEBUG", "1")
    result = invoke("search", "none.yaml")
    assert isinstance(result.exception, FileNotFoundError)

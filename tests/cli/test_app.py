"""The command line from end to end, and what it says to wrong input."""

import json
import logging
import signal
import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import optuna
import pytest
import yaml
from typer.testing import CliRunner

from optuna_robustloss.benchmark import trainings
from optuna_robustloss.cli import options
from optuna_robustloss.cli.app import app
from optuna_robustloss.distributed import lease
from optuna_robustloss.losses import MAE_THETA, MSE_THETA, TaylorLoss, load_loss, save_loss
from optuna_robustloss.search.objective import NoisyLabelObjective

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


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """Commands run in an empty folder, and leave this process as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    handler, verbosity = signal.getsignal(signal.SIGTERM), optuna.logging.get_verbosity()
    logger = logging.getLogger("optuna.study._optimize")
    with warnings.catch_warnings():
        yield
    signal.signal(signal.SIGTERM, handler)
    optuna.logging.set_verbosity(verbosity)
    logger.filters.clear()


@pytest.fixture
def spec():
    Path("small.yaml").write_text(yaml.safe_dump(SPEC))
    return "small.yaml"


@pytest.fixture
def database(tmp_path):
    """Where several commands find the same study."""
    return f"sqlite:///{tmp_path}/shared.db"


def run(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def refused(*arguments):
    """The message to wrong input: one, without a traceback, and exit code 2."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 2, (result.output, result.exception)
    assert "Traceback" not in result.output
    assert result.stderr.lower().count("error") == 1
    return " ".join(result.stderr.replace("│", " ").split())


def trials(url, name="small"):
    return optuna.load_study(study_name=name, storage=url).trials


# --- search ---


def test_a_search_leaves_its_database_and_its_loss_and_compares_them(spec):
    printed = run("search", spec, "--seeds", "2")
    assert sorted(p.name for p in Path().iterdir()) == ["small.db", "small.json", "small.yaml"]
    loss = load_loss("small.json")
    assert loss.provenance["study"] == "small"
    assert loss.provenance["trials"] == 4
    rows = [line.split("│")[1].strip() for line in printed.splitlines() if line.startswith("│")]
    comparison = rows[-8:]
    assert comparison[:6] == ["found (small.json)", "ce", "gce", "sce", "mae", "mae@10"]
    assert comparison[6].startswith("gce, best scale × ")
    assert comparison[7].startswith("sce, best scale × ")
    finalists = rows[:-8]
    assert sum("(chosen)" in row for row in finalists) == 1
    assert sum("(control)" in row for row in finalists) == 1
    title = "digits/mlp2/symmetric 40 %: clean test accuracy at the last epoch, 2 seeds"
    assert title in " ".join(printed.split())
    assert printed.splitlines()[-2:] == ["database: sqlite:///small.db", "loss: small.json"]

    again = run("search", spec, "--seeds", "0")
    assert len(trials("sqlite:///small.db")) == 4
    assert "finalists" not in again  # nor is the second round run again
    assert load_loss("small.json").theta == loss.theta


def test_a_search_in_parts_goes_on_where_it_stopped(spec):
    for done in (1, 3):
        printed = run("search", spec, "--trials", min(done, 2), "--study-name", "parts")
        assert printed.splitlines()[-1] == f"{done} of 4 trials are done"
        assert not Path("parts.json").exists()
    run("search", spec, "--study-name", "parts", "--seeds", "0", "--out", "elsewhere.json")
    assert len(trials("sqlite:///parts.db", "parts")) == 4
    assert load_loss("elsewhere.json").provenance["study"] == "parts"


def test_a_search_with_another_sampler_has_the_start_loss_in_front():
    Path("random.yaml").write_text(yaml.safe_dump(SPEC | {"sampler": "random"}))
    run("search", "random.yaml", "--seeds", "0")
    assert [t.state.name for t in trials("sqlite:///small.db")] == ["COMPLETE"] * 5
    assert trials("sqlite:///small.db")[0].user_attrs["start"] == "mae"
    assert load_loss("small.json").provenance["spec"]["sampler"] == "random"


def test_a_search_trains_a_generation_as_one_population_unless_told_otherwise(spec, monkeypatch):
    asked, evaluate = [], NoisyLabelObjective.evaluate

    def note(self, trials):
        asked.append(len(trials))
        return evaluate(self, trials)

    monkeypatch.setattr(NoisyLabelObjective, "evaluate", note)
    run("search", spec, "--seeds", "0")
    run("search", spec, "--seeds", "0", "--study-name", "pairs", "--candidates", "2")
    worker = ["work", "--storage", "sqlite:///alone.db", "--study-name", "small"]
    run("init", spec, "--storage", "sqlite:///alone.db")
    run(*worker, "--trials", "1")  # by itself one at a time, as others may be about
    run(*worker, "--workers", "1")
    assert asked == [4, 2, 2, 1, 3]


def test_a_search_by_two_processes_is_one_study(spec):
    printed = run("search", spec, "--seeds", "0", "--workers", "2", "--trials", "3")
    assert printed.splitlines()[-1] == "3 of 4 trials are done"
    run("search", spec, "--seeds", "0", "--workers", "2")
    assert [t.state.name for t in trials("sqlite:///small.db")].count("COMPLETE") == 4
    assert len({t.user_attrs["worker"] for t in trials("sqlite:///small.db") if t.params}) > 1
    assert load_loss("small.json").provenance["trials"] == 4


# --- init, work, export ---


def test_workers_share_a_study_until_it_is_done(spec, database):
    printed = run("init", spec, "--storage", database, "--study-name", "shared")
    assert "study 'shared' in sqlite:///" in printed
    assert trials(database, "shared") == []
    worker = ["work", "--storage", database, "--study-name", "shared"]
    run(*worker, "--trials", "3", "--candidates", "2", "--lease", "60")
    assert len(trials(database, "shared")) == 3
    run(*worker)
    run(*worker)  # finds nothing left to do
    assert [t.state.name for t in trials(database, "shared")] == ["COMPLETE"] * 4
    printed = run("export", "shared", "mine.json", "--storage", database)
    assert "loss: mine.json" in printed
    assert "Finalists on 3 fresh seeds" in printed
    assert load_loss("mine.json").provenance["study"] == "shared"


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


# --- evaluate ---


def test_evaluate_compares_losses_of_any_name(tmp_path):
    save_loss(TaylorLoss(MSE_THETA, 10, eta=3.0), "mine.json")
    names = ["ce", "gce*0.2", "mine.json", "mae@10", "sce*best"]
    printed = run("evaluate", *names, *TASK, "--validation", "100", "--json", "figures.json")
    figures = json.loads(Path("figures.json").read_text())
    assert figures["task"]["dataset"] == "digits"
    assert figures["task"]["recipe"]["epochs"] == 2
    results = figures["results"]
    assert [r["loss"] for r in results] == [*names[:4], "sce, best scale"]
    assert [r["scales"] is None for r in results] == [True] * 4 + [False]
    for result in results:
        mean = sum(result["test_accuracy"]) / 2
        assert len(result["test_accuracy"]) == 2
        assert result["loss"] in printed
        assert f"{100 * mean:.1f} ± " in printed


def test_evaluate_repeats_itself_and_changes_with_the_seed():
    figures = []
    for seed in (0, 0, 1):
        run("evaluate", "ce", *TASK, "--seed", seed, "--json", "figures.json")
        figures.append(json.loads(Path("figures.json").read_text())["results"])
    assert figures[0] == figures[1] != figures[2]


def test_settings_of_the_recipe_are_changed_for_all_losses():
    options = ["--lr", "0.5", "--batch-size", "60", "--json", "figures.json"]
    run("evaluate", "ce", *TASK, *options)
    recipe = json.loads(Path("figures.json").read_text())["task"]["recipe"]
    assert (recipe["lr"], recipe["batch_size"], recipe["epochs"]) == (0.5, 60, 2)


def test_brackets_in_names_are_shown_as_they_are():
    """Not read as markup for colours."""
    save_loss(TaylorLoss(MAE_THETA, 10), "mine[bold].json")
    assert "mine[bold].json" in run("evaluate", "mine[bold].json", *TASK)
    assert "'[red]ce[/red]'" in refused("evaluate", "[red]ce[/red]", *TASK)


# --- Wrong input ---


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
        (["search", "small.yaml", "--out", "no/small.json"], "'no/small.json' is not a file in"),
        (["search", "small.yaml", "--device", "gpu9"], "device 'gpu9' cannot be used"),
        (["search", "small.yaml", "--trials", "0"], "Invalid value for '--trials'"),
        (["search", "small.yaml", "--threads", "0"], "Invalid value for '--threads'"),
        (["search", "small.yaml", "--candidates", "0"], "Invalid value for '--candidates'"),
        (["search", "small.yaml", "--workers", "0"], "Invalid value for '--workers'"),
        (
            ["search", "small.yaml", "--workers", "2", "--storage", "sqlite:///:memory:"],
            "a database in memory cannot be shared",
        ),
        (["work", "--storage", "sqlite:///small.db"], "Missing option '--study-name'"),
        (["work", "--storage", "sqlite:///s.db", "--study-name", "a"], "there is no database s.db"),
        (["status", "small"], "there is no database small.db"),
        (["status", "small", "--lease", "0"], "Invalid value for '--lease'"),
        (["work", "--study-name", "a", "--candidates", "0"], "Invalid value for '--candidates'"),
        (["export", "small", "."], "'.' is not a file in an existing folder"),
        (["export", "small", "small.json"], "there is no database small.db"),
        (["evaluate", "gec", *TASK], "unknown loss 'gec', did you mean 'gce'?"),
        (["evaluate", "none.json", *TASK], "there is no loss file none.json"),
        (["evaluate", "gce*two", *TASK], "'two' in the loss 'gce*two' is not a number"),
        (["evaluate", "ce*best", *TASK], "needs validation images"),
        (["evaluate", "ce", "--task", "digits"], "a task is DATASET,ARCHITECTURE[,NOISE]"),
        (["evaluate", "ce", "--task", "digits,mlp9"], "unknown network 'mlp9'"),
        (["evaluate", "ce", "--task", "digits,mlp2,symetric:0.4"], "(got 'symetric')"),
        (["evaluate", "ce", *TASK, "--batch-size", "0"], "batch_size: Input should be greater"),
        (["evaluate", "ce", *TASK, "--seeds", "0"], "Invalid value for '--seeds'"),
        (["evaluate", "ce", *TASK, "--json", "no/f.json"], "'no/f.json' is not a file in"),
        (["evaluate", "ce", "--task", "mnist,mlp2", "--root", "no"], "mnist"),
    ],
)
def test_wrong_input_is_one_message(spec, arguments, message):
    assert message in refused(*arguments)


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


def test_errors_keep_their_traceback_for_debugging(monkeypatch):
    monkeypatch.setenv("OPTUNA_ROBUSTLOSS_DEBUG", "1")
    result = CliRunner().invoke(app, ["search", "none.yaml"])
    assert isinstance(result.exception, FileNotFoundError)


def test_without_a_command_the_help_is_shown():
    result = CliRunner().invoke(app, [])
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
    blocked = "import sys; sys.modules.update(dict.fromkeys(['torch', 'optuna', 'numpy']))"
    command = f"{blocked}; import runpy; runpy.run_module('optuna_robustloss', run_name='__main__')"
    result = subprocess.run([sys.executable, "-c", command, *arguments], capture_output=True)
    assert result.returncode == code, result.stderr.decode()
    assert text in (result.stdout + result.stderr).decode()


def test_defaults_that_help_shows_are_those_of_the_package():
    assert options.LEASE == lease.LEASE
    assert options.TOGETHER == trainings.TOGETHER

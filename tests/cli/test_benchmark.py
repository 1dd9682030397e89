"""The command, in processes of its own: killed, shared, wrong, and its report."""

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import optuna
import pytest
import yaml
from benchmark.test_study import VALUES, each_once
from support.waiting import LIMIT, wait_until

from cli.commands import invoke
from optuna_robustloss.benchmark import worker as worker_module
from optuna_robustloss.benchmark.rows import run_of
from optuna_robustloss.benchmark.study import open_benchmark, stored_results
from optuna_robustloss.distributed.storage import open_storage

COMMAND = [sys.executable, "-c", "from optuna_robustloss.cli.app import main; main()", "benchmark"]


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/tiny.db"


@pytest.fixture
def bench(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(VALUES | {"methods": ["ce", "mae", "gce", "forward", "jocor"]}))
    return path


def start(bench, url, *arguments):
    return subprocess.Popen(
        [*COMMAND, str(bench), "--out", str(bench.parent / "out"), "--storage", url, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def found_so_far(url):
    try:
        return stored_results(optuna.load_study(study_name="tiny", storage=url))
    except Exception:  # its tables are being made
        return []


@pytest.mark.slow
def test_a_killed_benchmark_goes_on_and_ends_with_its_report(bench, url):
    """Killed in the middle, then two workers at once: nothing is lost, nothing done twice."""
    first = start(bench, url, "--together", "2")
    wait_until(lambda: Path(url.removeprefix("sqlite:///")).is_file() and found_so_far(url))
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = found_so_far(url)
    assert before
    second = start(bench, url, "--together", "2", "--workers", "2")
    printed, errors = second.communicate(timeout=LIMIT)
    assert second.returncode == 0, errors
    study, spec = open_benchmark(open_storage(url), "tiny")
    each_once(study, spec.runs())
    after = {o.run: o for o in stored_results(study)}
    assert all(after[o.run] == o for o in before)
    out = bench.parent / "out"
    table = (out / "table.md").read_text()
    assert "Forward correction" in table
    assert "symmetric 40 %" in table
    assert "missing" not in table
    names = {p.name for p in out.iterdir()}
    assert {"table.md", "table.csv", "table.tex", "table.html", "ranks.csv", "figures"} <= names
    assert (out / "figures" / "loss-shapes.html").is_file()
    assert str(out / "table.md") in printed


@pytest.mark.slow
def test_two_hosts_share_one_postgresql(bench, postgres_url):
    both = [start(bench, postgres_url, "--together", "2") for _ in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, errors
    study, spec = open_benchmark(open_storage(postgres_url), "tiny")
    each_once(study, spec.runs())
    workers = Counter(t.user_attrs["worker"] for t in study.trials if t.state.name == "COMPLETE")
    assert len(workers) == 2


def test_ctrl_c_keeps_what_is_done(bench, url, monkeypatch):
    usual = worker_module.train_runs
    calls = []

    def train(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return usual(*arguments)

    monkeypatch.setattr(worker_module, "train_runs", train)
    result = invoke("benchmark", bench, "--out", "out", "--storage", url, "--together", "2")
    assert result.exit_code == 130
    assert "stopped: 2 of 20 trainings are done and kept" in result.output
    assert Counter(
        t.state.name for t in optuna.load_study(study_name="tiny", storage=url).trials
    ) == {
        "COMPLETE": 2,
        "FAIL": 2,
    }
    result = invoke("benchmark", bench, "--out", "out", "--storage", url, "--report-only")
    assert result.exit_code == 0
    assert len(calls) == 2
    assert "missing: 18 of 20 trainings" in Path("out/table.md").read_text()


def test_a_method_that_fails_is_named_and_the_others_are_reported(bench, url, monkeypatch):
    usual = worker_module.train_runs

    def train(spec, runs, options):
        if any(run.method == "jocor" for run in runs):
            raise RuntimeError("out of memory")
        return usual(spec, runs, options)

    monkeypatch.setattr(worker_module, "train_runs", train)
    result = invoke("benchmark", bench, "--out", "out", "--storage", url)
    assert result.exit_code == 1
    assert "4 of 20 trainings failed" in result.output
    assert (
        "jocor on digits/mlp2/clean, seed 1, scale 1: RuntimeError: out of memory" in result.output
    )
    assert "GCE" in Path("out/table.md").read_text()


def test_a_tuned_pass_adds_the_regimes_of_a_chosen_scale(bench, url):
    values = VALUES | {"methods": ["ce", "gce"], "scales": [0.5, 1], "seeds": 1}
    bench.write_text(yaml.safe_dump(values))
    result = invoke("benchmark", bench, "--out", "out", "--storage", url, "--tuned")
    assert result.exit_code == 0, result.output
    table = Path("out/table.md").read_text()
    for regime in ("native", "clean 60", "clean 20", "noisy 60"):
        assert f": {regime}" in table
    assert "blind: empty: its scales are chosen on other data sets" in table
    result = invoke(
        *("benchmark", bench, "--out", "out", "--storage", url, "--horizon", 3),
        *("--schedule", "cosine", "--only", "clean"),
    )
    assert result.exit_code == 0, result.output
    assert "symmetric" not in Path("out/table.md").read_text()
    study, _ = open_benchmark(open_storage(url), "tiny")
    longer = [run_of(t) for t in study.trials if run_of(t).horizon == 3]
    assert {(c.task, c.schedule, c.scale) for c in longer} == {("digits/mlp2/clean", "cosine", 1)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--horizon", "2"], "horizons of benchmark 'tiny' are 1, 3; 2.0 is none of them"),
        (["--only", "resnet"], "no task has resnet in it"),
        (["--storage", "sqlite:///nowhere/x.db"], "nowhere"),
        (["--report-only"], "tiny.db"),
    ],
)
def test_what_cannot_be_done_is_one_message_and_leaves_nothing(bench, arguments, message):
    result = invoke("benchmark", bench, "--out", "out", *arguments)
    assert result.exit_code == 2
    assert message in result.output.replace("\n", "")
    assert "Traceback" not in result.output
    assert not Path("tiny.db").exists()
    assert not Path("out").exists()


def test_a_network_that_does_not_fit_shows_before_a_study_is_made(bench):
    tasks = [{"datasets": "digits", "architectures": "cnn4", "noise": "none"}]
    bench.write_text(yaml.safe_dump(VALUES | {"tasks": tasks}))
    result = invoke("benchmark", bench, "--out", "out")
    assert result.exit_code == 2
    assert "cnn4 needs images of at least 16×16 pixels" in result.output.replace("\n", " ")
    assert not Path("tiny.db").exists()


def test_features_of_test_images_are_shown_for_each_method(bench):
    result = invoke(
        *("features", bench, "features.html", "--task", "clean", "--images", 60),
        *("--method", "ce", "--method", "jocor"),
    )
    assert result.exit_code == 0, result.output
    text = Path("features.html").read_text()
    assert "JoCoR" in text
    assert "true class 7" in text
    result = invoke("features", bench, "features.html", "--task", "mlp2")
    assert result.exit_code == 2
    assert "'mlp2' names 2 tasks, not one of" in result.output


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"train": 5000}, "5000"), ({"test": 5000}, r"test \(5000\) exceeds the \d+ test images")],
)
def test_more_images_than_there_are_is_said_before_a_study_is_made(tmp_path, wrong, message):
    path = tmp_path / "large.yaml"
    path.write_text(yaml.safe_dump(VALUES | wrong))
    result = invoke(
        "benchmark", path, "--out", tmp_path / "out", "--storage", f"sqlite:///{path}.db"
    )
    assert result.exit_code == 2
    assert re.search(message, result.stderr), result.stderr
    assert "Traceback" not in result.stderr
    assert not path.with_suffix(".yaml.db").exists()

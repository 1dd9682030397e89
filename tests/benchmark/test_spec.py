"""A benchmark as a YAML file: what it holds, what is refused."""

import math
from pathlib import Path

import pytest

from optuna_robustloss.benchmark.methods import check_method
from optuna_robustloss.benchmark.spec import BenchmarkSpec
from optuna_robustloss.losses import MSE_THETA, TaylorLoss, save_loss
from optuna_robustloss.search.spec import StudySpec

STUDIES = Path(__file__).parents[2] / "studies"
SHIPPED = [
    *("small", "digits_methods", "phases"),
    *("table1", "table2", "table3", "table4", "figure3", "human"),
]
MINIMAL = {
    "name": "tiny",
    "methods": ["ce", "gce"],
    "tasks": [{"datasets": "digits", "architectures": "mlp2", "noise": ["symmetric:0.4", "none"]}],
    "seeds": 2,
}


def spec(**changes):
    return BenchmarkSpec.from_values(MINIMAL | changes, "bench.yaml")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_benchmarks_load(name):
    shipped = BenchmarkSpec.from_yaml(STUDIES / f"{name}.yaml")
    assert shipped.name == name
    assert len(shipped.runs()) == len(shipped.methods) * len(shipped.task_specs) * shipped.seeds


def test_the_small_benchmark_has_every_method_and_every_kind_of_task():
    small = BenchmarkSpec.from_yaml(STUDIES / "small.yaml")
    assert {t.architecture for t in small.task_specs} == {"mlp2", "mlp3", "cnn4"}
    assert {t.dataset for t in small.task_specs} == {"mnist", "kmnist", "cifar10"}
    kinds = {t.noise.kind for t in small.task_specs}
    assert kinds == {"none", "symmetric", "asymmetric", "pair-flip"}
    assert {"ce", "forward", "jocor", "elr", "sce-then-confirm", "ar_sym80"} <= set(small.methods)


def test_runs_come_seed_after_seed_so_that_an_early_table_has_all_tasks():
    runs = spec().runs()
    assert [(c.seed, c.task.split("/")[2], c.method) for c in runs[:5]] == [
        (0, "symmetric 40 %", "ce"),
        (0, "symmetric 40 %", "gce"),
        (0, "clean", "ce"),
        (0, "clean", "gce"),
        (1, "symmetric 40 %", "ce"),
    ]


def test_a_pass_takes_scales_horizons_schedules_and_tasks():
    runs = spec().runs(scales=[1, 0.1], horizons=[3], schedules=["cosine"], only=["clean"])
    assert {(c.scale, c.horizon, c.schedule) for c in runs} == {
        (1.0, 3.0, "cosine"),
        (0.1, 3.0, "cosine"),
    }
    assert {c.task for c in runs} == {"digits/mlp2/clean"}


def test_a_pass_that_the_spec_does_not_have_is_refused():
    for options, message in [
        ({"scales": [7]}, "scales of benchmark 'tiny' are 0.05, .*; 7 is none of them"),
        ({"horizons": [2]}, "horizons of benchmark"),
        ({"schedules": ["linear"]}, "schedules of benchmark"),
        ({"only": ["resnet"]}, "no task has resnet in it: digits/mlp2"),
    ]:
        with pytest.raises(ValueError, match=message):
            spec().runs(**options)


def test_mistakes_are_named():
    for changes, message in [
        ({"method": ["ce"]}, "unknown key 'method'; known keys: name, methods, tasks"),
        ({"methods": ["cee"]}, "did you mean 'ce'.*as methods also forward, jocor, elr"),
        ({"methods": ["gce@2"]}, "'gce' has no fixed switch"),
        ({"methods": ["ce-then-mae@x"]}, "'x' in the method 'ce-then-mae@x' is not a number"),
        ({"methods": ["ce", "ce"]}, "methods has the same value twice"),
        ({"scales": [0.1]}, "1, the native one, must be among them"),
        ({"horizons": [1, -1]}, "horizons: .*numbers from 1e-6 to 1e6"),
        ({"scales": [1, math.nan]}, r"numbers from 1e-6 to 1e6, got \[1.0, nan\]"),
        ({"scales": [1, 1e300]}, "numbers from 1e-6 to 1e6"),
        ({"scales": [1, 0]}, "numbers from 1e-6 to 1e6"),
        ({"seeds": 0}, r"seeds: .*greater than or equal to 1 \(got 0\)"),
        ({"seeds": 10**9}, r"seeds: .*less than or equal to 1000 \(got 1000000000\)"),
        ({"seed": 2**63}, "seed: "),
        ({"train": 10**12}, "train: "),
        ({"test": 0}, "test: "),
        (
            {"evaluations": 50, "recipe": {"epochs": 9}},
            r"evaluations \(50\) exceed the 9 epochs of",
        ),
        ({"seeds": 1000, "scales": [1, *range(2, 600)]}, "trainings; allowed are 1000000"),
        ({"schedules": ["cosine"]}, "'recipe', the native one"),
        ({"recipe": {"rate": 1}}, "unknown key 'rate'; known keys: optimizer"),
        ({"few": 2000}, "a part of validation"),
        ({"tasks": MINIMAL["tasks"] * 2}, "'digits/mlp2/symmetric 40 %' is there twice"),
        ({"tasks": [{"datasets": "digit", "architectures": "mlp2", "noise": "none"}]}, "digits"),
    ]:
        with pytest.raises(ValueError, match=rf"^bench\.yaml: .*{message}") as error:
            spec(**changes)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"), [("- a\n", "is a mapping"), ("a: [", "is not YAML"), (None, "there is no")]
)
def test_a_file_that_is_no_benchmark_is_refused(tmp_path, text, message):
    path = tmp_path / "bench.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        BenchmarkSpec.from_yaml(path)


def test_a_search_is_no_benchmark_and_the_other_way_round():
    with pytest.raises(ValueError, match=r"digits\.yaml: this is a search: run it with"):
        BenchmarkSpec.from_yaml(STUDIES / "digits.yaml")
    with pytest.raises(ValueError, match=r"small\.yaml: this is a benchmark: run it with"):
        StudySpec.from_yaml(STUDIES / "small.yaml")


def test_a_key_at_its_default_is_not_part_of_the_hash():
    """So that a later version with one key more goes on with the benchmarks of today."""
    assert spec(few=200).hash == spec().hash
    assert spec(few=100).hash != spec().hash


def test_methods_may_be_files_and_scaled_losses(tmp_path):
    check_method("gce*0.2")
    check_method("mae@10")
    with pytest.raises(FileNotFoundError, match="there is no loss file"):
        check_method(str(tmp_path / "mine.json"))
    save_loss(TaylorLoss(MSE_THETA, 10), tmp_path / "me@home.json")
    check_method(str(tmp_path / "me@home.json"))
    check_method(f"{tmp_path / 'me@home.json'}*0.2")

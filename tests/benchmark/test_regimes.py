"""How scale and epoch are chosen, on made-up trainings."""

import numpy as np

from optuna_robustloss.benchmark.regimes import best_evaluation, measure
from optuna_robustloss.benchmark.runs import Run, RunEvaluation, RunResult
from optuna_robustloss.benchmark.spec import BenchmarkSpec

SPEC = BenchmarkSpec.from_values(
    {
        "name": "tiny",
        "methods": ["ce", "gce"],
        "tasks": [
            {"datasets": "digits", "architectures": "mlp2", "noise": ["none", "symmetric:0.2"]},
            {"datasets": ["mnist", "kmnist"], "architectures": "mlp2", "noise": "none"},
        ],
        "scales": [0.1, 1],
        "validation": 100,
        "few": 20,
        "seeds": 1,
    },
    "bench.yaml",
)
CLEAN, LOW, MNIST, KMNIST = (task.label for task in SPEC.task_specs)


def result(method, task, scale, *moments):
    """Moments are (test, clean, few, noisy)."""
    curve = [
        RunEvaluation(10 * i, float(i), 0.1 * i, *m, memorised=None)
        for i, m in enumerate(moments, start=1)
    ]
    return RunResult(Run(method, task, 0, scale), tuple(curve))


def flat(method, task, scale, test, clean=None):
    return result(method, task, scale, (test, test if clean is None else clean, 0.5, 0.5))


def read(measured, regime, pick="last"):
    return {
        (m.method, m.task): (m.accuracy, m.scale, m.epoch)
        for m in measured
        if m.regime == regime and m.pick == pick
    }


def test_native_is_the_last_epoch_at_scale_one():
    found = measure(SPEC, [result("gce", LOW, 1.0, (0.9, 0.9, 0.9, 0.9), (0.6, 0.5, 0.5, 0.9))])
    assert read(found, "native") == {("gce", LOW): (0.6, 1.0, 2.0)}
    assert read(found, "native", "best") == {("gce", LOW): (0.9, 1.0, 1.0)}
    assert {m.regime for m in found} == {"native"}


def test_cross_entropy_that_is_stopped_is_a_method_of_its_own():
    found = measure(SPEC, [result("ce", LOW, 1.0, (0.9, 0.9, 0.1, 0.3), (0.6, 0.5, 0.9, 0.4))])
    native = read(found, "native")
    assert native["ce-stopped-clean", LOW] == (0.9, 1.0, 1.0)
    assert native["ce-stopped-noisy", LOW] == (0.6, 1.0, 2.0)
    assert native["ce", LOW] == (0.6, 1.0, 2.0)


def test_scale_and_epoch_are_chosen_on_the_labels_of_the_regime():
    found = measure(
        SPEC,
        [
            result("gce", LOW, 0.1, (0.1, 0.8, 0.2, 0.2), (0.2, 0.3, 0.4, 0.1)),
            result("gce", LOW, 1.0, (0.3, 0.1, 0.9, 0.3), (0.4, 0.4, 0.3, 0.2)),
        ],
    )
    assert read(found, "clean 100") == {("gce", LOW): (0.4, 1.0, 2.0)}
    assert read(found, "clean 100", "best") == {("gce", LOW): (0.1, 0.1, 1.0)}
    assert read(found, "clean 20") == {("gce", LOW): (0.2, 0.1, 2.0)}
    assert read(found, "clean 20", "best") == {("gce", LOW): (0.3, 1.0, 1.0)}
    assert read(found, "noisy 100", "best") == {("gce", LOW): (0.3, 1.0, 1.0)}


def test_a_blind_scale_is_chosen_on_the_other_data_sets_only():
    """On each data set the best scale is one that the others advise against."""
    table = {CLEAN: (0.9, 0.5), LOW: (0.9, 0.5), MNIST: (0.2, 0.7), KMNIST: (0.5, 0.6)}
    trainings = [
        flat("gce", task, scale, value)
        for task, values in table.items()
        for scale, value in zip((0.1, 1.0), values, strict=True)
    ]
    found = read(measure(SPEC, trainings), "blind")
    assert found["gce", CLEAN] == (0.5, 1.0, 1.0)
    assert found["gce", LOW] == (0.5, 1.0, 1.0)  # not by its twin on the same images
    assert found["gce", MNIST] == (0.2, 0.1, 1.0)  # .9 and .5 against .5 and .6
    assert found["gce", KMNIST] == (0.6, 1.0, 1.0)  # .55 against .6: a data set counts once


def test_a_single_data_set_has_no_blind_regime():
    trainings = [
        flat(method, task, scale, 0.5)
        for method in ("ce", "gce")
        for task in (CLEAN, LOW)
        for scale in (0.1, 1.0)
    ]
    found = measure(SPEC, trainings)
    assert read(found, "blind") == {}
    assert len(read(found, "clean 100")) == 4


def test_two_spellings_of_one_file_are_one_data_set(tmp_path, monkeypatch):
    images = np.zeros((40, 8, 8), np.uint8)
    labels = np.arange(40) % 2
    np.savez(tmp_path / "a.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    monkeypatch.chdir(tmp_path)
    grid = {
        "datasets": ["a.npz", str(tmp_path / "a.npz")],
        "architectures": "mlp2",
        "noise": "none",
    }
    spec = BenchmarkSpec.from_values(
        {"name": "own", "methods": "gce", "tasks": grid, "scales": [0.1, 1]}, "own.yaml"
    )
    trainings = [flat("gce", t.label, s, 0.5) for t in spec.task_specs for s in (0.1, 1.0)]
    found = measure(spec, trainings)
    assert read(found, "blind") == {}
    assert len({one.dataset for one in found}) == 1


def test_tasks_without_a_tuned_method_do_not_change_a_blind_choice():
    trainings = [
        flat(method, task, scale, scale)
        for method in ("ce", "gce")
        for task in (LOW, MNIST)
        for scale in (0.1, 1.0)
        if (method, task) != ("ce", MNIST)
    ]
    found = read(measure(SPEC, [*trainings, flat("gce", KMNIST, 1.0, 0.5)]), "blind")
    assert found == {
        ("gce", LOW): (1.0, 1.0, 1.0),
        ("gce", MNIST): (1.0, 1.0, 1.0),
    }


def test_a_blind_choice_never_sees_test_accuracy():
    trainings = [
        flat("gce", task, scale, test=scale, clean=1 - scale / 2)
        for task in (CLEAN, LOW, MNIST)
        for scale in (0.1, 1.0)
    ]
    assert {v[1] for v in read(measure(SPEC, trainings), "blind").values()} == {0.1}


def test_a_method_without_all_scales_is_in_no_tuned_regime():
    trainings = [flat("ce", LOW, 1.0, 0.5), flat("gce", LOW, 0.1, 0.4), flat("gce", LOW, 1.0, 0.5)]
    found = measure(SPEC, trainings)
    assert {m.method for m in found if m.regime == "clean 100"} == {"gce"}
    assert read(found, "blind") == {}  # of which the other tasks are missing


def test_horizons_and_schedules_are_not_mixed():
    longer = RunResult(
        Run("gce", LOW, 0, 1.0, horizon=3.0, schedule="cosine"),
        (RunEvaluation(30, 3.0, 0.3, 0.7, 0.7, 0.7, 0.7, None),),
    )
    found = measure(SPEC, [flat("gce", LOW, 1.0, 0.5), longer])
    natives = [m for m in found if m.pick == "last"]
    assert {(m.horizon, m.schedule): m.accuracy for m in natives} == {
        (1.0, "recipe"): 0.5,
        (3.0, "cosine"): 0.7,
    }


def test_without_noisy_labels_there_is_no_such_regime():
    trainings = [result("ce", LOW, s, (0.5, 0.5, 0.5, None)) for s in (0.1, 1.0)]
    found = measure(SPEC, trainings)
    assert not [m for m in found if m.regime.startswith("noisy")]
    assert {m.method for m in found} == {"ce", "ce-stopped-clean"}


def test_the_first_of_equal_moments_is_the_best():
    for values, step in (((0.1, 0.3, 0.3), 20), ((0.5, 0.3, 0.4), 10)):
        curve = result("ce", LOW, 1.0, *[(0.0, v, v, v) for v in values]).curve
        assert best_evaluation(curve, "clean").step == step

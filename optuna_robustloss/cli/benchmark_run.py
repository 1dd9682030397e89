"""A benchmark from the command line: its workers under one progress bar, and its report."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

from optuna.study import Study

from optuna_robustloss.benchmark.methods import check_method, loss_shapes_of
from optuna_robustloss.benchmark.regimes import measure
from optuna_robustloss.benchmark.runs import Run
from optuna_robustloss.benchmark.spec import BenchmarkSpec
from optuna_robustloss.benchmark.study import count_done, failed_runs, stored_results
from optuna_robustloss.benchmark.trainings import Options, trained_networks
from optuna_robustloss.benchmark.worker import BenchmarkJob, run_benchmark
from optuna_robustloss.cli.console import print_lines, set_up_process
from optuna_robustloss.cli.progress import progress_bar
from optuna_robustloss.cli.worker_pool import exit_on_interrupt, run_jobs
from optuna_robustloss.report.figures.features import feature_maps, penultimate
from optuna_robustloss.report.html import write_html
from optuna_robustloss.report.write import write_report
from optuna_robustloss.search.worker_job import devices_each
from optuna_robustloss.training.networks import default_device

_PACKAGES = ("optuna-robustloss", "torch", "torchvision", "timm", "optuna")
_SETTINGS = {
    "published": "published, by data set and noise",
    "cifar10": "cifar10 everywhere, from 100 classes on CIFAR-100's",
}
#: Failed trainings that are shown.
_SHOWN = 5
#: Noises that have a rate, for accuracy against noise level.
_RATED = ("none", "symmetric", "pair-flip", "asymmetric", "asymmetric-blocks")


def train_missing(
    study: Study,
    spec: BenchmarkSpec,
    runs: Sequence[Run],
    storage: str,
    workers: int,
    threads: int,
    options: Options,
) -> None:
    """Train what is missing of ``runs``; Ctrl-C ends the command cleanly, with code 130."""
    bar = progress_bar()
    task = bar.add_task("benchmark", total=len(runs), completed=count_done(study, runs), note="")

    def refresh() -> None:
        bar.update(task, completed=count_done(study, runs))

    def done() -> str:
        return f"{count_done(study, runs)} of {len(runs)} trainings are done"

    with exit_on_interrupt(done), bar:
        if workers == 1:
            run_benchmark(study, spec, runs, options, on_run=refresh)
        elif count_done(study, runs) < len(runs):
            set_up = partial(set_up_process, threads)
            jobs = [
                BenchmarkJob(
                    storage, study.study_name, set_up, runs, replace(options, device=device)
                )
                for device in devices_each(options.device, workers)
            ]
            run_jobs(study, jobs, storage, refresh)


def print_failures(study: Study, runs: Sequence[Run]) -> bool:
    """Print which trainings failed, and why; return whether any did."""
    missing = len(runs) - count_done(study, runs)
    if not missing:
        return False
    why = "".join(
        f"\n{run.method} on {run.task}, seed {run.seed}, scale {run.scale:g}: {text}"
        for run, text in list(failed_runs(study, runs).items())[:_SHOWN]
    )
    print_lines(f"{missing} of {len(runs)} trainings failed; the same command tries again{why}")
    return True


def report(study: Study, spec: BenchmarkSpec, runs: Sequence[Run], out: Path) -> None:
    """Write tables, ranks and figures of all that is done on the tasks of ``runs`` to ``out``.

    Raises:
        ValueError: nothing is done yet.

    """
    tasks = {run.task for run in runs}
    found = [result for result in stored_results(study) if result.run.task in tasks]
    classes = 10
    write_report(
        out,
        found,
        measure(spec, found),
        reference="ce" if "ce" in spec.methods else spec.methods[0],
        settings="published" if spec.settings == "published" else "cifar10 everywhere",
        facts=facts(spec),
        runs=runs,
        rates=noise_rates(spec),
        criteria=loss_shapes_of(spec.methods, classes),
        num_classes=classes,
    )


def facts(spec: BenchmarkSpec) -> dict[str, str]:
    """What a reader of the tables has to know: sizes, seeds, recipes, versions."""
    sizes = f"{spec.train or 'all'} training, {spec.validation} validation, "
    sizes += f"{spec.test or 'all'} test images, drawn anew for each seed"
    recipes = {
        f"{t.architecture} on {t.dataset}: {t.recipe.optimizer}, lr {t.recipe.lr:g} "
        f"({t.recipe.schedule}), batch {t.recipe.batch_size}, {t.recipe.epochs} epochs, "
        f"{t.recipe.precision}"
        + (f", {t.train} training images" if t.train not in (None, spec.train) else "")
        for t in spec.task_specs
    }
    return {
        "benchmark": f"{spec.name} ({spec.hash})",
        "seeds": f"{spec.seeds}, from {spec.seed}",
        "settings of the methods": _SETTINGS[spec.settings],
        "images": sizes,
        "recipes": "; ".join(sorted(recipes)),
        "scales to choose from": ", ".join(f"{scale:g}" for scale in spec.scales),
        "versions": ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
        + f", Python {platform.python_version()}",
        "device": str(default_device()),
    }


def noise_rates(spec: BenchmarkSpec) -> dict[str, tuple[str, float]]:
    """Return group and rate of each task whose noise has one; clean tasks belong to all groups."""
    rates = {}
    for task in spec.task_specs:
        if task.noise.kind in _RATED:
            kind = "symmetric" if task.noise.kind == "none" else task.noise.kind
            rates[task.label] = (f"{task.dataset}/{task.architecture}, {kind}", task.noise.rate)
    return rates


def show_features(
    spec: BenchmarkSpec,
    part: str,
    methods: Sequence[str],
    images: int,
    options: Options,
    out: Path,
) -> None:
    """Train methods on the one task that has ``part`` in its label, and write a t-SNE figure.

    Raises:
        ValueError: no task or several have it, or a method is unknown.

    """
    labels = [task.label for task in spec.task_specs if part in task.label]
    if len(labels) != 1:
        known = ", ".join(labels or [task.label for task in spec.task_specs])
        raise ValueError(f"{part!r} names {len(labels)} tasks, not one of: {known}")
    for method in methods:
        check_method(method)
    test, networks = trained_networks(spec, labels[0], methods, options)
    shown = replace(test, index=test.index[:images])
    device = options.device or default_device()
    found = {
        method: penultimate(
            network, (batch for _, batch in shown.images.batches(shown.index, 250, device=device))
        )
        for method, network in networks.items()
    }
    figure = feature_maps(found, shown.labels[shown.index], title=f"{labels[0]}: last features")
    write_html(figure, out)

"""The commands of a search: create a study, work on it, look at it, export and compare its loss."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import optuna_robustloss as rl  # its names are imported when they are first used
from optuna_robustloss.cli import options as opt
from optuna_robustloss.cli.console import console, print_lines, set_up_process
from optuna_robustloss.cli.paths import check_file, default_storage, own_file
from optuna_robustloss.distributed.urls import mask_password

if TYPE_CHECKING:
    from optuna.study import Study


def search(
    spec: opt.StudyFile,
    storage: opt.Storage = None,
    study_name: opt.StudyName = None,
    out: Annotated[
        Path | None, typer.Option(callback=check_file, help="File of the loss found.")
    ] = None,
    trials: opt.Trials = None,
    workers: opt.Workers = None,
    candidates: opt.Candidates = None,
    seeds: Annotated[
        int, typer.Option(min=0, max=1000, help="Seeds of the comparison; 0 skips it.")
    ] = 5,
    root: opt.Root = None,
    download: opt.Download = False,
    device: opt.Device = None,
    threads: opt.Threads = 1,
) -> None:
    """Create a study or go on with it, choose the loss, and compare it with hand-made ones."""
    from optuna_robustloss.benchmark.trainings import Options
    from optuna_robustloss.cli.search_result import compare_loss, export_loss
    from optuna_robustloss.cli.worker_pool import WorkerPool, done
    from optuna_robustloss.search.study import finished_study

    set_up_process(threads)
    study_spec = rl.StudySpec.from_yaml(spec)
    name = study_name or study_spec.name
    url = storage or default_storage(name)
    path = out or own_file(name, ".json", "--out")
    objective = rl.NoisyLabelObjective(study_spec, device=device, root=root, download=download)
    objective.tasks(0)  # what is missing shows before a study is made
    study = _create_study(study_spec, url, name)
    WorkerPool(workers or 1, trials, candidates, threads, device=device).run(study, objective, url)
    if not finished_study(study, study_spec):
        print_lines(done(study, study_spec))
        return
    loss = export_loss(study, objective, path)
    if seeds > 0:
        options = Options(device=objective.device, root=root)
        compare_loss(path, loss, study_spec, seeds, options)
    print_lines(f"database: {mask_password(url)}")
    print_lines(f"loss: {path}")


def _create_study(spec: rl.StudySpec, url: str, name: str) -> Study:
    study = rl.create_study(spec, url, name)
    print_lines(f"study {name!r} in {mask_password(url)}")
    return study


def init(
    spec: opt.StudyFile, storage: opt.Storage = None, study_name: opt.StudyName = None
) -> None:
    """Create a study without working on it."""
    set_up_process()
    study_spec = rl.StudySpec.from_yaml(spec)
    name = study_name or study_spec.name
    _create_study(study_spec, storage or default_storage(name), name)


def work(
    storage: opt.ThisStorage,
    study_name: Annotated[str, typer.Option("--study-name", help="Name of the study.")],
    spec: Annotated[
        Path | None, typer.Option(help="For a study that has no spec yet; must match otherwise.")
    ] = None,
    trials: opt.Trials = None,
    workers: opt.Workers = None,
    candidates: opt.Candidates = None,
    lease: opt.Lease = opt.LEASE,
    root: opt.Root = None,
    download: opt.Download = False,
    device: opt.Device = None,
    threads: opt.Threads = 1,
) -> None:
    """Work on a study until its trials are done; any number of workers may."""
    from optuna_robustloss.cli.worker_pool import WorkerPool
    from optuna_robustloss.search.study import attach_spec

    set_up_process(threads)
    options: dict[str, Any] = {"device": device, "root": root, "download": download}
    given = rl.StudySpec.from_yaml(spec) if spec else None
    if given is not None:
        rl.NoisyLabelObjective(given, **options).tasks(0)  # raises before the spec is stored
    study = rl.open_study(rl.open_storage(storage, wait=True), study_name, given, lease=lease)
    objective = rl.NoisyLabelObjective(attach_spec(study, given), **options)
    if workers is None and candidates is None:
        candidates = 1  # others may work on the same generation
    pool = WorkerPool(workers or 1, trials, candidates, threads, lease, device)
    pool.run(study, objective, storage)


def status(
    study_name: Annotated[str, typer.Argument(help="Name of the study.")],
    storage: opt.Storage = None,
    lease: opt.Lease = opt.LEASE,
) -> None:
    """Show who works on a study, how far it is, and how long it will take."""
    from optuna_robustloss.cli.tables import status_table
    from optuna_robustloss.search.status import status_of
    from optuna_robustloss.search.study import attach_spec

    set_up_process()
    study = rl.open_study(rl.open_storage(storage or default_storage(study_name)), study_name)
    console().print(status_table(status_of(study, attach_spec(study, None), lease=lease)))


def export(
    study_name: Annotated[str, typer.Argument(help="Name of the study.")],
    out: Annotated[Path, typer.Argument(callback=check_file, help="JSON file of the loss.")],
    storage: opt.Storage = None,
    root: opt.Root = None,
    device: opt.Device = None,
    threads: opt.Threads = 1,
) -> None:
    """Choose a study's loss by a second round on fresh seeds, and write it to a file."""
    from optuna_robustloss.cli.search_result import export_loss
    from optuna_robustloss.search.study import attach_spec

    set_up_process(threads)
    study = rl.open_study(rl.open_storage(storage or default_storage(study_name)), study_name)
    objective = rl.NoisyLabelObjective(attach_spec(study, None), device=device, root=root)
    print_lines(str(export_loss(study, objective, out)))
    print_lines(f"loss: {out}")


def evaluate(
    losses: Annotated[
        list[str],
        typer.Argument(
            help="Loss files, names of the zoo and methods such as ce, gce, mae@ETA; *0.2 scales, "
            "*best tunes the scale on validation data."
        ),
    ],
    task: Annotated[str, typer.Option(help="DATASET,ARCHITECTURE[,NOISE].")],
    train: Annotated[int | None, typer.Option(help="Training images; all by default.")] = None,
    validation: Annotated[int, typer.Option(help="Validation images, for *best.")] = 0,
    epochs: Annotated[int | None, typer.Option(help="By default the recipe's.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="By default the recipe's.")] = None,
    lr: Annotated[float | None, typer.Option(help="By default the recipe's.")] = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Trainings per loss.")] = 3,
    seed: Annotated[int, typer.Option(help="From which all seeds follow.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", callback=check_file, help="Write the figures too.")
    ] = None,
    root: opt.Root = None,
    device: opt.Device = None,
    threads: opt.Threads = 1,
) -> None:
    """Train with each loss under one recipe, data and noise; measure clean test accuracy."""
    from optuna_robustloss.benchmark.evaluate import LossEntry
    from optuna_robustloss.benchmark.trainings import Options
    from optuna_robustloss.cli.search_result import show_losses

    set_up_process(threads)
    recipe = {"epochs": epochs, "batch_size": batch_size, "lr": lr}
    recipe = {key: value for key, value in recipe.items() if value is not None}
    spec = rl.TaskSpec.parse(task, train=train, validation=validation, recipe=recipe)
    entries = [LossEntry.parse(name) for name in losses]
    show_losses(spec, entries, seeds, seed, Options(device=device, root=root), json_file)

"""The commands of a search: create a study, work on it, look at it, export and compare its loss."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optuna_robustloss.cli.console import (
    check_writable,
    clear_errors,
    console,
    default_storage,
    print_line,
    set_up_process,
)
from optuna_robustloss.cli.options import (
    LEASE,
    Candidates,
    Device,
    Download,
    Lease,
    Root,
    Storage,
    StudyName,
    ThisStorage,
    ThisStudy,
    Threads,
    Trials,
    WorkerCandidates,
    Workers,
)


def search(
    spec: Annotated[Path, typer.Argument(help="YAML file of the study.")],
    storage: Storage = None,
    study_name: StudyName = None,
    out: Annotated[
        Path | None, typer.Option(callback=check_writable, help="File of the loss found.")
    ] = None,
    trials: Trials = None,
    workers: Workers = None,
    candidates: Candidates = None,
    seeds: Annotated[int, typer.Option(min=0, help="Seeds of the comparison; 0 skips it.")] = 5,
    root: Root = None,
    download: Download = False,
    device: Device = None,
    threads: Threads = 1,
) -> None:
    """Create a study or go on with it, choose the loss, and compare it with hand-made ones."""
    from optuna_robustloss.benchmark.evaluate import LossEntry
    from optuna_robustloss.benchmark.trainings import Options
    from optuna_robustloss.cli.search_result import export_loss, show_losses
    from optuna_robustloss.cli.worker_pool import WorkerPool, done
    from optuna_robustloss.distributed.storage import open_storage
    from optuna_robustloss.distributed.urls import mask_password
    from optuna_robustloss.losses import TaylorLoss
    from optuna_robustloss.search.objective import NoisyLabelObjective
    from optuna_robustloss.search.spec import StudySpec
    from optuna_robustloss.search.study import create_study, finished_study

    with clear_errors():
        set_up_process(threads)
        study_spec = StudySpec.from_yaml(spec)
        name = study_name or study_spec.name
        url = storage or default_storage(name)
        objective = NoisyLabelObjective(study_spec, device=device, root=root, download=download)
        objective.tasks(0)  # what is missing shows before a study is made
        study = create_study(study_spec, open_storage(url, create=True), name)
        print_line(f"study {name!r} in {mask_password(url)}")
        pool = WorkerPool(workers or 1, trials, candidates, threads, device=device)
        pool.run(study, objective, url)
        if not finished_study(study, study_spec):
            console.print(done(study, study_spec))
            return
        path = out or Path(f"{name}.json")
        loss = export_loss(study, objective, path)
        if seeds > 0:
            own = f"mae@{loss.eta:.4g}" if isinstance(loss, TaylorLoss) else "sce-then-confirm"
            controls = ["ce", "gce", "sce", "mae", own, "gce*best", "sce*best"]
            entries = [
                LossEntry(f"found ({path.name})", str(path)),
                *map(LossEntry.parse, controls),
            ]
            options = Options(device=objective.device, root=root)
            for task in study_spec.tasks:
                show_losses(task, entries, seeds=seeds, seed=study_spec.seed, options=options)
        print_line(f"database: {mask_password(url)}")
        print_line(f"loss: {path}")


def init(
    spec: Annotated[Path, typer.Argument(help="YAML file of the study.")],
    storage: Storage = None,
    study_name: StudyName = None,
) -> None:
    """Create a study without working on it."""
    from optuna_robustloss.distributed.storage import open_storage
    from optuna_robustloss.distributed.urls import mask_password
    from optuna_robustloss.search.spec import StudySpec
    from optuna_robustloss.search.study import create_study

    with clear_errors():
        set_up_process(1)
        study_spec = StudySpec.from_yaml(spec)
        name = study_name or study_spec.name
        url = storage or default_storage(name)
        create_study(study_spec, open_storage(url, create=True), name)
        print_line(f"study {name!r} in {mask_password(url)}")


def work(
    storage: ThisStorage,
    study_name: ThisStudy,
    spec: Annotated[
        Path | None, typer.Option(help="For a study that has no spec yet; must match otherwise.")
    ] = None,
    trials: Trials = None,
    workers: Workers = None,
    candidates: WorkerCandidates = None,
    lease: Lease = LEASE,
    root: Root = None,
    download: Download = False,
    device: Device = None,
    threads: Threads = 1,
) -> None:
    """Work on a study until its trials are done; any number of workers may."""
    from optuna_robustloss.cli.worker_pool import WorkerPool
    from optuna_robustloss.distributed.storage import open_storage
    from optuna_robustloss.search.objective import NoisyLabelObjective
    from optuna_robustloss.search.spec import StudySpec
    from optuna_robustloss.search.study import attach_spec, open_study

    with clear_errors():
        set_up_process(threads)
        given = StudySpec.from_yaml(spec) if spec else None
        study = open_study(open_storage(storage), study_name, given, lease=lease)
        study_spec = attach_spec(study, given)
        objective = NoisyLabelObjective(study_spec, device=device, root=root, download=download)
        if workers is None and candidates is None:
            candidates = 1  # others may work on the same generation
        WorkerPool(workers or 1, trials, candidates, threads, lease, device).run(
            study, objective, storage
        )


def status(
    study_name: Annotated[str, typer.Argument(help="Name of the study.")],
    storage: Storage = None,
    lease: Lease = LEASE,
) -> None:
    """Show who works on a study, how far it is, and how long it will take."""
    from optuna_robustloss.cli.tables import status_table
    from optuna_robustloss.distributed.storage import open_storage
    from optuna_robustloss.search.status import status_of
    from optuna_robustloss.search.study import attach_spec, open_study

    with clear_errors():
        set_up_process(1)
        study = open_study(open_storage(storage or default_storage(study_name)), study_name)
        console.print(status_table(status_of(study, attach_spec(study, None), lease=lease)))


def export(
    study_name: Annotated[str, typer.Argument(help="Name of the study.")],
    out: Annotated[Path, typer.Argument(callback=check_writable, help="JSON file of the loss.")],
    storage: Storage = None,
    root: Root = None,
    device: Device = None,
    threads: Threads = 1,
) -> None:
    """Choose a study's loss by a second round on fresh seeds, and write it to a file."""
    from optuna_robustloss.cli.search_result import export_loss
    from optuna_robustloss.distributed.storage import open_storage
    from optuna_robustloss.search.objective import NoisyLabelObjective
    from optuna_robustloss.search.study import attach_spec, open_study

    with clear_errors():
        set_up_process(threads)
        url = storage or default_storage(study_name)
        study = open_study(open_storage(url), study_name)
        study_spec = attach_spec(study, None)
        objective = NoisyLabelObjective(study_spec, device=device, root=root)
        console.print(str(export_loss(study, objective, out)))
        print_line(f"loss: {out}")


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
    seeds: Annotated[int, typer.Option(min=1, help="Trainings per loss.")] = 3,
    seed: Annotated[int, typer.Option(help="From which all seeds follow.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", callback=check_writable, help="Write the figures too.")
    ] = None,
    root: Root = None,
    device: Device = None,
    threads: Threads = 1,
) -> None:
    """Train with each loss under one recipe, data and noise; measure clean test accuracy."""
    from optuna_robustloss.benchmark.evaluate import LossEntry
    from optuna_robustloss.benchmark.trainings import Options
    from optuna_robustloss.cli.search_result import show_losses
    from optuna_robustloss.cli.tables import losses_json
    from optuna_robustloss.tasks.spec import TaskSpec

    with clear_errors():
        set_up_process(threads)
        changes = {"epochs": epochs, "batch_size": batch_size, "lr": lr}
        spec = TaskSpec.parse(
            task,
            train=train,
            validation=validation,
            recipe={key: value for key, value in changes.items() if value is not None},
        )
        entries = [LossEntry.parse(name) for name in losses]
        options = Options(device=device, root=root)
        results = show_losses(spec, entries, seeds=seeds, seed=seed, options=options)
        if json_file:
            json_file.write_text(losses_json(spec, seed, results), encoding="utf-8")

"""The commands of a benchmark: train and rank methods, and show what their networks see."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import optuna_robustloss as rl  # its names are imported when they are first used
from optuna_robustloss.cli import options as opt
from optuna_robustloss.cli.console import print_lines, set_up_process
from optuna_robustloss.cli.paths import check_file, check_folder, default_storage
from optuna_robustloss.distributed.urls import mask_password

#: Methods of the paper's Figure 2, without its own.
_SHOWN = ["ce", "forward", "gce"]


def benchmark(
    spec: opt.BenchmarkFile,
    out: Annotated[
        Path,
        typer.Option(
            file_okay=False, callback=check_folder, help="Folder for tables, ranks and figures."
        ),
    ],
    storage: opt.Storage = None,
    study_name: opt.StudyName = None,
    tuned: Annotated[
        bool, typer.Option("--tuned", help="Train each method at all scales of the spec.")
    ] = False,
    horizon: Annotated[
        list[float], typer.Option(help="Length of training × the recipe's epochs; may be repeated.")
    ] = [1.0],  # noqa: B006
    schedule: Annotated[
        list[str], typer.Option(help="Learning rate over the run; may be repeated.")
    ] = ["recipe"],  # noqa: B006
    settings: Annotated[
        str | None,
        typer.Option(
            metavar="published|cifar10",
            help="Settings of the methods, in place of the spec's: published for each data set and "
            "noise, or CIFAR-10's everywhere.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Only tasks whose label has this in it, such as mlp2; may be repeated."),
    ] = None,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Train nothing; report what there is.")
    ] = False,
    workers: opt.Workers = None,
    together: Annotated[
        int, typer.Option(min=1, help="Trainings that a worker claims and runs side by side.")
    ] = opt.TOGETHER,
    lease: opt.Lease = opt.LEASE,
    root: opt.Root = None,
    download: opt.Download = False,
    device: opt.Device = None,
    threads: opt.Threads = 1,
) -> None:
    """Train every method on every task, or go on with it, and rank the methods."""
    from optuna_robustloss.benchmark.spec import BenchmarkSpec
    from optuna_robustloss.benchmark.study import create_benchmark
    from optuna_robustloss.benchmark.trainings import Options, check_data
    from optuna_robustloss.cli.benchmark_run import print_failures, report, train_missing

    set_up_process(threads)
    bench = BenchmarkSpec.from_yaml(spec)
    if settings:
        bench = bench.from_values(bench.model_dump(mode="json") | {"settings": settings}, str(spec))
    name = study_name or bench.name
    url = storage or default_storage(name)
    scales = bench.scales if tuned else (1.0,)
    runs = bench.runs(scales=scales, horizons=horizon, schedules=schedule, only=only)
    options = Options(together, lease, device, root, download)
    if not report_only:
        check_data(bench, runs, options)  # what is missing shows before a study is made
    opened = rl.open_storage(url, create=not report_only, wait=not report_only)
    study = create_benchmark(bench, opened, name)
    print_lines(f"benchmark {name!r} in {mask_password(url)}")
    failed = False
    if not report_only:
        train_missing(study, bench, runs, url, workers or 1, threads, options)
        failed = print_failures(study, runs)
    report(study, bench, runs, out)
    print_lines(f"report: {out / 'table.md'}")
    if failed:
        raise typer.Exit(1)


def features(
    spec: opt.BenchmarkFile,
    out: Annotated[Path, typer.Argument(callback=check_file, help="HTML file of the figure.")],
    task: Annotated[str, typer.Option(help="Label of a task, or a part of it.")],
    method: Annotated[
        list[str], typer.Option(help="Method of the benchmark; may be repeated.")
    ] = _SHOWN,
    images: Annotated[int, typer.Option(min=50, help="Test images that are shown.")] = 1000,
    root: opt.Root = None,
    download: opt.Download = False,
    device: opt.Device = None,
    threads: opt.Threads = 1,
) -> None:
    """Train some methods on a task, and show what their last layers see of test images (t-SNE)."""
    from optuna_robustloss.benchmark.spec import BenchmarkSpec
    from optuna_robustloss.benchmark.trainings import Options
    from optuna_robustloss.cli.benchmark_run import show_features

    set_up_process(threads)
    options = Options(device=device, root=root, download=download)
    show_features(BenchmarkSpec.from_yaml(spec), task, method, images, options, out)
    print_lines(f"figure: {out}")

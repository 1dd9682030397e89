"""Options that several commands share."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from optuna_robustloss.cli.console import parse_device


def _check_number(value: float) -> float:
    """Refuse NaN, which is neither below nor above a limit."""
    if math.isnan(value):
        raise typer.BadParameter("nan is not a number")
    return value


_STORAGE = typer.Option(
    "--storage",
    envvar="OPTUNA_STORAGE",
    help="sqlite:///FILE, postgresql+psycopg://…, mysql+pymysql://…, journal:FILE, grpc://HOST:PORT.",
)
StudyFile = Annotated[Path, typer.Argument(help="YAML file of the study.")]
BenchmarkFile = Annotated[Path, typer.Argument(help="YAML file of the benchmark.")]
Storage = Annotated[str | None, _STORAGE]
ThisStorage = Annotated[str, _STORAGE]
StudyName = Annotated[str | None, typer.Option(help="By default the spec's name.")]
Root = Annotated[
    Path | None,
    typer.Option(help="Folder of the data. By default $OPTUNA_ROBUSTLOSS_DATA, else ./data."),
]
Download = Annotated[bool, typer.Option("--download", help="Fetch missing data.")]
Device = Annotated[
    Any,  # a torch.device or None; a type from PyTorch would have to be imported
    typer.Option(
        parser=parse_device, metavar="DEVICE", help="By default CUDA where there is a device."
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=1000,
        help="Processes on this machine: as many as there are free cores, or GPUs.",
    ),
]
Candidates = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Trials a worker asks for at once and trains together. By default popsize ÷ "
        "--workers, and 1 for 'work' without --workers.",
    ),
]
Threads = Annotated[
    int,
    typer.Option(
        min=1,
        max=1000,
        help="CPU threads of each process; more --workers use more cores better.",
    ),
]
Trials = Annotated[int | None, typer.Option(min=1, help="Stop after this many trials.")]
Lease = Annotated[
    float,
    typer.Option(
        min=1,
        max=1e6,
        callback=_check_number,
        help="Seconds without a heartbeat after which a trial counts as lost; the same for all "
        "workers of a study.",
    ),
]
#: Defaults of ``distributed.lease`` and ``benchmark.trainings``, whose import would take seconds.
LEASE = 120.0
TOGETHER = 8

"""How much faster two workers on one PostgreSQL finish a benchmark than one.

``python benchmarks/sharing.py studies/small.yaml --only mnist/mlp3``: each is a command
of its own with one thread, as on two hosts; both sides begin with an empty database.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

sys.path.extend(str(Path(__file__).parents[1] / folder) for folder in ("", "tests"))

from support.postgres import PostgresServer

COMMAND = [sys.executable, "-c", "from optuna_robustloss.cli.app import main; main()", "benchmark"]


def seconds(url: str, workers: int, arguments: list[str]) -> float:
    """Return how long so many commands take for a benchmark that they share."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPTUNA_STORAGE": url}
    with tempfile.TemporaryDirectory() as folder:
        begin = time.monotonic()
        processes = [
            subprocess.Popen([*COMMAND, *arguments, "--out", f"{folder}/{i}"], env=environment)
            for i in range(workers)
        ]
        codes = [process.wait() for process in processes]
        if any(codes):
            raise RuntimeError(f"a worker ended with exit code {max(codes)}")
        return time.monotonic() - begin


def main(spec: Path, only: Annotated[list[str] | None, typer.Option()] = None) -> None:
    """Print the seconds of one worker and of two, and their ratio."""
    arguments = [str(spec), *(part for text in only or [] for part in ("--only", text))]
    with PostgresServer() as server:
        times = [
            seconds(server.create_database(f"workers_{count}"), count, arguments)
            for count in (1, 2)
        ]
    print(f"one worker {times[0]:.0f} s, two {times[1]:.0f} s: × {times[0] / times[1]:.2f}")


if __name__ == "__main__":
    typer.run(main)

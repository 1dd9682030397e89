"""Draw accuracy against scale × learning rate × steps for some methods of a benchmark.

For example the README's figure, after ``optuna-robustloss benchmark studies/small.yaml --tuned
--only mlp --out small``::

    python benchmarks/cumulative_lr_figure.py small figure.html --method ce --method gce
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optuna_robustloss.benchmark.study import open_benchmark, stored_results
from optuna_robustloss.distributed.storage import open_storage
from optuna_robustloss.report.figures.cumulative_lr import accuracy_against_cumulative_lr
from optuna_robustloss.report.html import write_html


def main(
    study_name: Annotated[str, typer.Argument(help="Name of the benchmark's study.")],
    out: Annotated[Path, typer.Argument(help="HTML file to write.")],
    method: Annotated[list[str], typer.Option(help="May be repeated.")],
    storage: str | None = None,
) -> None:
    """Write the figure, the mean over the tasks on which all scales were trained."""
    url = storage or f"sqlite:///{study_name}.db"
    study, _ = open_benchmark(open_storage(url), study_name)
    chosen = [result for result in stored_results(study) if result.run.method in method]
    write_html(accuracy_against_cumulative_lr(chosen), out)


if __name__ == "__main__":
    typer.run(main)

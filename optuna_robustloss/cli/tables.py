"""Tables of a study and of a comparison, for the terminal."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence

from optuna.study import Study
from optuna.trial import TrialState
from rich.table import Table

from optuna_robustloss.attributes import GENERATION, START
from optuna_robustloss.benchmark.evaluate import LossResult
from optuna_robustloss.cli.console import printable
from optuna_robustloss.distributed.damaged_rows import single_value
from optuna_robustloss.search.selection import Selection
from optuna_robustloss.search.status import Status
from optuna_robustloss.tasks.spec import TaskSpec


class _Table(Table):
    """A table that escapes its cells, line by line: their text may come from a database."""

    def add_row(self, *cells: str, style: str | None = None) -> None:  # type: ignore[override]
        lines = (map(printable, cell.split("\n")) for cell in cells)
        super().add_row(*map("\n".join, lines), style=style)


def _table(title: str, *columns: str, right: int = 0) -> _Table:
    """Return an empty table whose columns from number ``right`` on are figures."""
    table = _Table(title=printable(title), title_justify="left", show_header=bool(columns))
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < right else "right")
    return table


def _percent(mean: float, std: float) -> str:
    return f"{100 * mean:.1f} ± {100 * std:.1f}"


def losses_table(results: Sequence[LossResult], title: str) -> Table:
    """Show the test accuracy of each loss in percent: mean ± standard deviation over seeds."""
    table = _table(title, "loss", "test accuracy, %", "seeds", right=1)
    best = max(result.mean for result in results)
    for result in results:
        scales = sorted({f"{scale:g}" for scale in result.scales or ()}, key=float)
        table.add_row(
            result.label + (f" × {', '.join(scales)}" if scales else ""),
            _percent(result.mean, result.std),
            str(len(result.accuracies)),
            style="bold" if result.mean == best else None,
        )
    return table


def losses_json(task: TaskSpec, seed: int, results: Sequence[LossResult]) -> str:
    """Return the task, the seed and the accuracies of each loss as JSON."""
    figures = {
        "task": task.model_dump(mode="json"),
        "seed": seed,
        "results": [
            {"loss": r.label, "scales": r.scales, "test_accuracy": r.accuracies} for r in results
        ],
    }
    return json.dumps(figures, indent=2) + "\n"


def generation_table(study: Study) -> Table:
    """Show the fitness of the complete trials by generation, in percent."""
    values: dict[int, list[float]] = defaultdict(list)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        generation = GENERATION.read(trial)
        if generation is not None and START.read(trial) is None:
            values[generation].append(single_value(trial) or 0.0)
    table = _table("Fitness by generation", "generation", "trials", "mean, %", "best, %")
    for generation, fitness in sorted(values.items()):
        mean = 100 * sum(fitness) / len(fitness)
        table.add_row(
            str(generation + 1), str(len(fitness)), f"{mean:.1f}", f"{100 * max(fitness):.1f}"
        )
    return table


def selection_table(selection: Selection) -> Table:
    """Show the finalists of a study on fresh seeds, best first."""
    count = len(selection.finalists[0].values)
    title = f"Finalists on {count} fresh seeds"
    table = _table(title, "candidate", "validation accuracy, %", right=1)
    for finalist in sorted(selection.finalists, key=lambda f: -f.mean):
        won = finalist == selection.winner
        table.add_row(
            finalist.name + (" (control)" if finalist.control else " (chosen)" if won else ""),
            _percent(finalist.mean, finalist.std),
            style="bold" if won else None,
        )
    return table


def status_table(status: Status) -> Table:
    """Show the progress of a study, its workers and the time left."""
    table = _table(f"study {status.study!r}")
    share = 100 * status.done / status.total
    table.add_row("evaluations", f"{status.done} of {status.total} done ({share:.0f} %)")
    if not status.finished:
        table.add_row("generation", f"{status.generation + 1} of {status.generations}")
        table.add_row(
            f"its {status.popsize} slots",
            f"{status.slots_done} done, {status.slots_running} running, {status.slots_stale} stale",
        )
        alive = [
            f"{printable(w)} (trial {', '.join(map(str, n))})" for w, n in status.workers.items()
        ]
        table.add_row("workers alive", "\n".join([str(len(alive)), *alive]))
    counts = [f"{n} {state.lower()}" for state, n in status.states.items() if n]
    table.add_row("trials", ", ".join(counts) or "none")
    if status.stale:
        table.add_row("without a heartbeat", f"trials {', '.join(map(str, status.stale))}")
    if status.per_hour is not None and not status.finished:
        digits = ".0f" if status.per_hour >= 10 else ".2g"
        table.add_row("evaluations per hour", f"{status.per_hour:{digits}}")
        table.add_row("time left", str(status.left).partition(".")[0])
    return table

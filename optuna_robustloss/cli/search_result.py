"""What a study comes to: the loss that is chosen, and how it compares."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optuna.study import Study

from optuna_robustloss.cli.console import console
from optuna_robustloss.cli.progress import bar
from optuna_robustloss.losses import PhasedLoss, TaylorLoss
from optuna_robustloss.report.tables import comparison_table, generation_table, selection_table
from optuna_robustloss.search.objective import NoisyLabelObjective
from optuna_robustloss.search.selection import Selection, select, selected_loss, stored_selection
from optuna_robustloss.tasks.spec import TaskSpec
from optuna_robustloss.training.compare import Contender, Result, compare


def _select(study: Study, objective: NoisyLabelObjective) -> Selection:
    with bar(console) as progress:
        task = progress.add_task("finalists", total=None, note="")
        selection = select(
            study,
            objective,
            on_run=lambda done, total: progress.update(task, completed=done, total=total),
        )
    return selection


def export_loss(study: Study, objective: NoisyLabelObjective, out: Path) -> TaylorLoss | PhasedLoss:
    """Choose the study's loss if that is not done yet, show why, and write it to ``out``."""
    selection = stored_selection(study) or _select(study, objective)
    console.print(generation_table(study))
    console.print(selection_table(selection))
    if selection.control.mean >= selection.winner.mean:
        console.print(
            "The control did at least as well as the best candidate: this search found nothing "
            "better than its start."
        )
    loss = selected_loss(study, selection, objective)
    loss.save(out)
    return loss


def show_comparison(
    spec: TaskSpec, contenders: Sequence[Contender], **options: Any
) -> list[Result]:
    """Compare losses on a task with a progress bar, and show the table; see ``compare``."""
    with bar(console) as progress:
        task = progress.add_task("comparison", total=None, note=spec.label)
        results = compare(
            spec,
            contenders,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
            **options,
        )
    seeds = len(results[0].accuracies)
    title = f"{spec.label}: clean test accuracy at the last epoch, {seeds} seeds"
    console.print(comparison_table(results, title))
    return results

"""What a study comes to: the loss that is chosen, and how it compares."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optuna.study import Study

from optuna_robustloss.benchmark.evaluate import LossEntry, LossResult, evaluate_losses
from optuna_robustloss.cli.console import console
from optuna_robustloss.cli.progress import bar
from optuna_robustloss.cli.tables import generation_table, losses_table, selection_table
from optuna_robustloss.losses import PhasedLoss, TaylorLoss, save_loss
from optuna_robustloss.search.objective import NoisyLabelObjective
from optuna_robustloss.search.selection import (
    Selection,
    evaluate_finalists,
    selected_loss,
    stored_selection,
)
from optuna_robustloss.tasks.spec import TaskSpec


def _select(study: Study, objective: NoisyLabelObjective) -> Selection:
    with bar(console) as progress:
        task = progress.add_task("finalists", total=None, note="")
        selection = evaluate_finalists(
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
    save_loss(loss, out)
    return loss


def show_losses(task: TaskSpec, entries: Sequence[LossEntry], **options: Any) -> list[LossResult]:
    """Call ``evaluate_losses`` under a progress bar, show its table and return the results."""
    with bar(console) as progress:
        row = progress.add_task("comparison", total=None, note=task.label)
        results = evaluate_losses(
            task,
            entries,
            on_progress=lambda done, total: progress.update(row, completed=done, total=total),
            **options,
        )
    seeds = len(results[0].accuracies)
    title = f"{task.label}: clean test accuracy at the last epoch, {seeds} seeds"
    console.print(losses_table(results, title))
    return results

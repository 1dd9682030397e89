"""What a study comes to: the loss that is chosen, and how it compares."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from optuna.study import Study

from optuna_robustloss.benchmark.evaluate import LossEntry, LossResult, evaluate_losses
from optuna_robustloss.benchmark.trainings import Options
from optuna_robustloss.cli.console import console, print_lines, printable
from optuna_robustloss.cli.progress import progress_bar
from optuna_robustloss.cli.tables import (
    generation_table,
    losses_json,
    losses_table,
    selection_table,
)
from optuna_robustloss.losses import PhasedLoss, TaylorLoss, save_loss
from optuna_robustloss.report.html import write_text_atomically
from optuna_robustloss.search.objective import NoisyLabelObjective
from optuna_robustloss.search.selection import (
    Selection,
    evaluate_finalists,
    selected_loss,
    stored_selection,
)
from optuna_robustloss.search.spec import StudySpec
from optuna_robustloss.tasks.spec import TaskSpec


def _select(study: Study, objective: NoisyLabelObjective) -> Selection:
    with progress_bar() as progress:
        task = progress.add_task("finalists", total=None, note="")
        selection = evaluate_finalists(
            study,
            objective,
            on_run=lambda done, total: progress.update(task, completed=done, total=total),
        )
    return selection


def export_loss(study: Study, objective: NoisyLabelObjective, out: Path) -> TaylorLoss | PhasedLoss:
    """Choose the study's loss if that is not done yet, write it to ``out``, and show why."""
    selection = stored_selection(study) or _select(study, objective)
    loss = selected_loss(study, selection, objective)
    save_loss(loss, out)
    console().print(generation_table(study))
    console().print(selection_table(selection))
    if selection.control.mean >= selection.winner.mean:
        print_lines(
            "The control did at least as well as the best candidate: this search found nothing "
            "better than its start."
        )
    return loss


def compare_loss(
    path: Path, loss: TaylorLoss | PhasedLoss, spec: StudySpec, seeds: int, options: Options
) -> None:
    """Compare the loss of a file with hand-made ones on each task of its study."""
    own = f"mae@{loss.eta:.4g}" if isinstance(loss, TaylorLoss) else "sce-then-confirm"
    controls = ["ce", "gce", "sce", "mae", own, "gce*best", "sce*best"]
    entries = [LossEntry(f"found ({path.name})", str(path)), *map(LossEntry.parse, controls)]
    for task in spec.tasks:
        show_losses(task, entries, seeds, spec.seed, options)


def show_losses(
    task: TaskSpec,
    entries: Sequence[LossEntry],
    seeds: int,
    seed: int,
    options: Options,
    json_file: Path | None = None,
) -> list[LossResult]:
    """Evaluate losses under a progress bar, write the figures to a file, show and return them."""
    with progress_bar() as progress:
        row = progress.add_task("comparison", total=None, note=printable(task.label))
        results = evaluate_losses(
            task,
            entries,
            seeds=seeds,
            seed=seed,
            options=options,
            on_progress=lambda done, total: progress.update(row, completed=done, total=total),
        )
    if not results:
        raise ValueError("no loss was trained with all seeds: see the warnings above")
    if json_file:
        write_text_atomically(json_file, losses_json(task, seed, results))
    seeds = len(results[0].accuracies)
    title = f"{task.label}: clean test accuracy at the last epoch, {seeds} seeds"
    console().print(losses_table(results, title))
    return results

"""Show the progress of a search or a benchmark."""

from __future__ import annotations

import sys

from optuna.study import Study
from optuna.trial import TrialState
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from optuna_robustloss.attributes import GENERATION
from optuna_robustloss.cli.console import console
from optuna_robustloss.distributed.damaged_rows import single_value
from optuna_robustloss.search.spec import StudySpec
from optuna_robustloss.search.study import trials_done


def progress_bar() -> Progress:
    """Return a bar with a free text, a count, the time spent and the time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console(),
        redirect_stderr=sys.stderr.isatty(),
    )


class SearchProgress:
    """Trials done by all workers, the generation and the best value so far, on a bar."""

    def __init__(self, study: Study, spec: StudySpec) -> None:
        self.bar = progress_bar()
        self._study = study
        self._spec = spec
        done = trials_done(study, spec)
        self._task = self.bar.add_task("search", total=spec.n_trials, completed=done, note="")

    def refresh(self, *_: object) -> None:
        """Show the present state of the study; takes the arguments of an Optuna callback."""
        trials = self._study.get_trials(deepcopy=False)
        complete = [single_value(t) or 0.0 for t in trials if t.state == TrialState.COMPLETE]
        if not complete:
            return
        generation = 1 + max((GENERATION.read(t) or 0) for t in trials)
        self.bar.update(
            self._task,
            completed=trials_done(self._study, self._spec),
            note=f"generation {min(generation, self._spec.generations)}/{self._spec.generations}, "
            f"best so far {100 * max(complete):.1f} %",
        )

"""Show the progress of a search or a benchmark."""

from __future__ import annotations

import sys

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from optuna_robustloss.attributes import GENERATION
from optuna_robustloss.search.spec import StudySpec
from optuna_robustloss.search.study import trials_done


def bar(console: Console) -> Progress:
    """Return a bar with a free text, a count, the time spent and the time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        redirect_stderr=sys.stderr.isatty(),
    )


class SearchProgress:
    """Shows trials done by all workers, the generation and the best value so far.

    Use as a context manager; ``on_trial`` is an Optuna callback.
    """

    def __init__(self, study: Study, spec: StudySpec, console: Console) -> None:
        self._study = study
        self._bar = bar(console)
        done = trials_done(study, spec)
        self._task = self._bar.add_task("search", total=spec.n_trials, completed=done, note="")
        self._spec = spec

    def __enter__(self) -> SearchProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def on_trial(self, _: Study, __: FrozenTrial) -> None:
        """Show the state of the study after a trial."""
        self.refresh()

    def refresh(self) -> None:
        """Show the present state of the study, with the trials of all workers."""
        trials = self._study.get_trials(deepcopy=False)
        complete = [t.value or 0.0 for t in trials if t.state == TrialState.COMPLETE]
        if not complete:
            return
        generation = 1 + max((GENERATION.read(t) or 0) for t in trials)
        self._bar.update(
            self._task,
            completed=trials_done(self._study, self._spec),
            note=f"generation {min(generation, self._spec.generations)}/{self._spec.generations}, "
            f"best so far {100 * max(complete):.1f} %",
        )

"""The progress bar of a search."""

from __future__ import annotations

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

    def on_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Show the state of the study after a trial."""
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        best = max((t.value or 0.0 for t in complete), default=0.0)
        generation = 1 + int(trial.user_attrs.get("generation", 0))
        self._bar.update(
            self._task,
            completed=trials_done(study, self._spec),
            note=f"generation {min(generation, self._spec.generations)}/{self._spec.generations}, "
            f"best so far {100 * best:.1f} %",
        )

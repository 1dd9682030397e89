"""The result of a study: the finalist with the best mean fitness on fresh seeds.

The best trial of a search is not its result: with noisy fitness its value is biased upwards.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from optuna_robustloss.attributes import SELECTION, SPEC, START
from optuna_robustloss.distributed.damaged_rows import damage_of, warn_of_damage
from optuna_robustloss.losses import PhasedLoss, TaylorLoss
from optuna_robustloss.search.objective import (
    OPTUNA_GENERATION,
    NoisyLabelObjective,
    generation_of,
)
from optuna_robustloss.search.parameters import Parameters
from optuna_robustloss.search.spec import StudySpec
from optuna_robustloss.search.study import attach_spec, read_generations, trials_done
from optuna_robustloss.seeds import derive_seed
from optuna_robustloss.training.train import steps_per_epoch

#: Number of last generations whose CMA means are averaged, and whose trials may be finalists.
LAST_GENERATIONS = 5


@dataclass(frozen=True)
class Finalist:
    """A candidate that is trained again, with its fitness on fresh seeds."""

    name: str
    params: dict[str, float]
    parameters: Parameters
    values: tuple[float, ...] = ()
    control: bool = False

    @property
    def mean(self) -> float:
        """Mean fitness over the seeds."""
        return math.fsum(self.values) / len(self.values)

    @property
    def std(self) -> float:
        """Sample standard deviation over the seeds."""
        return float(np.std(self.values, ddof=1))


@dataclass(frozen=True)
class Selection:
    """All finalists; the control is compared with the winner and cannot be it."""

    finalists: tuple[Finalist, ...]

    @property
    def winner(self) -> Finalist:
        """The best candidate that the search found."""
        return max((f for f in self.finalists if not f.control), key=lambda f: f.mean)

    @property
    def control(self) -> Finalist:
        """The start loss at the first finalist's η, and at its switch."""
        return next(f for f in self.finalists if f.control)


def recombination_weights(popsize: int) -> np.ndarray:
    """Return the weights (popsize // 2,) of the better half, best first.

    Hansen, "The CMA Evolution Strategy: A Tutorial", Eq. 49-53.
    """
    half = popsize // 2
    raw = math.log((popsize + 1) / 2) - np.log(np.arange(1, half + 1))
    return np.asarray(raw / raw.sum())


def generation_means(study: Study, spec: StudySpec) -> list[dict[str, float]]:
    """Return the mean of the CMA-ES distribution after each complete generation, in order.

    The means of the generational sampler are exact. For Optuna's CMA-ES it is the weighted mean of
    the better half of each generation, to which CMA-ES sets its mean with its default learning
    rate. Log-uniform parameters are averaged in the logarithm, in which they are searched.
    """
    if spec.sampler == "generational":
        generations = read_generations(study)
        return generations.means if generations is not None else []
    if spec.sampler != "optuna-cmaes":
        return []
    space = spec.space.distributions
    by_generation: dict[int, list[FrozenTrial]] = defaultdict(list)
    trials = _readable_trials(study, spec)
    # A second worker draws at random while the start loss is running; CMA-ES ignores that trial.
    drawn = [t for t in trials if OPTUNA_GENERATION in t.system_attrs] or trials
    for trial in drawn:
        if trial.params.keys() == space.keys() and START.read(trial) is None:
            by_generation[generation_of(trial, spec.popsize)].append(trial)
    weights = recombination_weights(spec.popsize)
    means = []
    for _, members in sorted(by_generation.items()):
        if len(members) < spec.popsize:
            continue
        ranked = sorted(members[: spec.popsize], key=lambda t: -(t.value or 0.0))
        means.append(_weighted_mean([t.params for t in ranked[: len(weights)]], weights, spec))
    return means


def _readable_trials(study: Study, spec: StudySpec, *states: TrialState) -> list[FrozenTrial]:
    """Return the trials in some states (by default the complete ones) that have the parameters."""
    names = spec.space.distributions.keys()
    trials = study.get_trials(deepcopy=False, states=states or (TrialState.COMPLETE,))
    return [t for t in trials if t.params.keys() >= names and damage_of(t) is None]


def _weighted_mean(
    points: Sequence[dict[str, float]], weights: np.ndarray, spec: StudySpec
) -> dict[str, float]:
    mean = {}
    for name, distribution in spec.space.distributions.items():
        values = np.array([point[name] for point in points])
        if distribution.log:
            mean[name] = float(np.exp(weights @ np.log(values)))
        else:
            mean[name] = float(weights @ values)
    return mean


def rank_trials(trials: Sequence[FrozenTrial], spec: StudySpec) -> list[FrozenTrial]:
    """Rank the complete trials of the last five generations by value minus their median.

    Generations differ by the luck of their seeds, so values of two generations do not compare
    (``benchmarks/finalists.py`` measures the rule). A generation counts if more than half of its
    trials are complete; if none does, trials are ranked by value. Random search does not improve:
    all its generations count.

    Args:
        trials: complete and pruned ones; a pruned one lies below the median.
        spec: of their study.

    """
    by_generation: dict[int, list[FrozenTrial]] = defaultdict(list)
    for trial in trials:
        by_generation[generation_of(trial, spec.popsize)].append(trial)
    medians: dict[int, float] = {}
    for generation, members in sorted(by_generation.items()):
        done = [t.value or 0.0 for t in members if t.state == TrialState.COMPLETE]
        values = done + [-math.inf] * (len(members) - len(done))
        if len(done) > max(len(members), spec.popsize) / 2:
            medians[generation] = float(np.median(values))
    late = [*medians][-LAST_GENERATIONS:] if spec.sampler != "random" else [*medians]
    candidates = [t for generation in late for t in by_generation[generation]] or trials
    return sorted(
        (t for t in candidates if t.state == TrialState.COMPLETE),
        key=lambda t: medians.get(generation_of(t, spec.popsize), 0.0) - (t.value or 0.0),
    )


def choose_finalists(study: Study, spec: StudySpec) -> list[Finalist]:
    """Return the mean of the last five CMA means, the best late trials, and the start as control.

    Raises:
        ValueError: no trial is complete yet.

    """
    space = spec.space
    trials = _readable_trials(study, spec, TrialState.COMPLETE, TrialState.PRUNED)
    ranked = rank_trials([t for t in trials if START.read(t) is None], spec)
    if not ranked:
        raise ValueError(f"study {study.study_name!r} has no complete trial yet: search first")
    found: dict[str, dict[str, float]] = {}
    last = generation_means(study, spec)[-LAST_GENERATIONS:]
    if last:
        even = np.full(len(last), 1 / len(last))
        found[f"mean of the last {len(last)} CMA means"] = _weighted_mean(last, even, spec)
    found |= {f"trial {t.number}": dict(t.params) for t in ranked[: spec.finalists]}
    finalists = [Finalist(name, params, space.at(params)) for name, params in found.items()]
    # The control has the range, the cross-entropy weight and the switch of the first candidate.
    first, centre = finalists[0].params, space.start_point
    start = {n: (first if d.log else centre)[n] for n, d in space.distributions.items()}
    name = f"start ({space.start}) at the same η"
    return [*finalists, Finalist(name, start, space.at(start), control=True)]


def evaluate_finalists(
    study: Study,
    objective: NoisyLabelObjective,
    *,
    on_run: Callable[[int, int], None] | None = None,
) -> Selection:
    """Train the finalists on fresh seeds, the same for all, and store the selection.

    Args:
        study: with at least one complete trial.
        objective: with the study's spec.
        on_run: called with (seeds done, seeds in all).

    Raises:
        ValueError: no trial is complete yet.

    """
    spec = attach_spec(study, None)
    finalists = choose_finalists(study, spec)
    seeds = [derive_seed(spec.seed, "finalist", k) for k in range(spec.finalist_seeds)]
    values: list[list[float]] = [[] for _ in finalists]
    for done, seed in enumerate(seeds, start=1):
        scores = objective.scores([finalist.parameters for finalist in finalists], seed)
        for own, score in zip(values, scores, strict=True):
            own.append(score.value)
        if on_run is not None:
            on_run(done, len(seeds))
    selection = Selection(
        tuple(replace(f, values=tuple(own)) for f, own in zip(finalists, values, strict=True))
    )
    SELECTION.write(study, _to_json(selection, seeds) | {"trials": trials_done(study, spec)})
    return selection


def _to_json(selection: Selection, seeds: Sequence[int]) -> dict[str, Any]:
    return {
        "winner": selection.winner.name,
        "seeds": [str(seed) for seed in seeds],
        "finalists": [
            {
                "name": f.name,
                "params": f.params,
                "values": list(f.values),
                "mean": f.mean,
                "std": f.std,
                "control": f.control,
                "loss": asdict(f.parameters),
            }
            for f in selection.finalists
        ],
    }


def stored_selection(study: Study) -> Selection | None:
    """Return the stored selection of ``study``; None if there is none or trials came later."""
    stored = SELECTION.read(study)
    spec = attach_spec(study, None)
    if stored is None or stored.get("trials") != trials_done(study, spec):
        return None
    try:
        selection = Selection(
            tuple(
                Finalist(
                    str(f["name"]),
                    f["params"],
                    spec.space.at(f["params"]),
                    tuple(map(float, f["values"])),
                    bool(f["control"]),
                )
                for f in stored["finalists"]
            )
        )
        usable = math.isfinite(selection.winner.std + selection.control.std)
    except (ArithmeticError, AttributeError, LookupError, StopIteration, TypeError, ValueError):
        usable = False
    if not usable:
        warn_of_damage(f"study {study.study_name!r}: its attribute {SELECTION.key!r} is left out")
        return None
    return selection


def selected_loss(
    study: Study, selection: Selection, objective: NoisyLabelObjective
) -> TaylorLoss | PhasedLoss:
    """Build the winner as a loss whose provenance names its study, spec and fitness."""
    spec = objective.spec
    winner, control, stored = selection.winner, selection.control, SPEC.read(study)
    tasks = objective.tasks(derive_seed(spec.seed, "finalist", 0))
    driven = {
        t.spec.label: t.spec.recipe.lr
        * steps_per_epoch(t)
        * round(t.spec.recipe.epochs * max(spec.horizons))
        for t in tasks
    }
    loss = winner.parameters.build(tasks[0].num_classes)
    loss.provenance = {
        "study": study.study_name,
        "spec": spec.model_dump(mode="json"),
        "spec_hash": spec.hash,
        "optuna_robustloss_version": stored.get("version") if stored else None,
        "exported": datetime.now(UTC).isoformat(timespec="seconds"),
        "chosen": winner.name,
        "trials": len(_readable_trials(study, spec)),
        "fitness": {"mean": winner.mean, "std": winner.std, "values": list(winner.values)},
        "control": {"name": control.name, "mean": control.mean, "std": control.std},
        "lr_times_steps": driven,
    }
    return loss

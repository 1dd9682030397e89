"""The start distribution of WS-CMA-ES, estimated from earlier studies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import optuna
from cmaes import get_warm_start_mgd
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_robustloss.distributed.damaged_rows import damage_of, is_number, single_value
from optuna_robustloss.distributed.storage import open_storage
from optuna_robustloss.sampler.optimizer import StartDistribution
from optuna_robustloss.sampler.transform import (
    Numerical,
    SearchSpaceTransform,
    numerical_parameters,
)

#: Earlier studies, or where to find them: (storage or its URL, study name).
Sources = Sequence[Study | tuple[str | BaseStorage, str]]

#: γ and α of Nomura et al. 2021: the share of the best trials, and the width of the prior.
_GAMMA, _ALPHA = 0.1, 0.1
_FEWEST = 10


def estimate_start(
    sources: Sources,
    direction: StudyDirection,
    space: Mapping[str, BaseDistribution] | None = None,
) -> tuple[dict[str, Numerical], StartDistribution]:
    """Fit a normal distribution to the best tenth of the complete trials of earlier studies.

    Each source gives its own best tenth, because values of different studies may not compare.

    Args:
        sources: studies with the same parameters and direction.
        direction: of the study that is about to begin.
        space: its parameters; those of the first source by default.

    Returns:
        The parameters, ordered by name, and the distribution, in units of their ranges
        (Nomura et al. 2021, "Warm Starting CMA-ES for Hyperparameter Optimization", Eq. 8-10).

    Raises:
        ValueError: a source is missing, has another direction, other parameters or ranges, or
            fewer than ten complete trials.

    """
    best: list[FrozenTrial] = []
    for source in (_open_source(s) for s in sources):
        name = source.study_name
        if source.directions != [direction]:
            theirs = ", ".join(d.name for d in source.directions)
            raise ValueError(
                f"source study {name!r} has the direction {theirs}, the new study {direction.name}"
            )
        trials = [
            t
            for t in source.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if is_number(single_value(t)) and damage_of(t) is None
        ]
        if space is None and trials:
            space = dict(numerical_parameters(trials[0].distributions))
        names = [name for name, _ in _sorted(space)]
        usable = [t for t in trials if all(t.distributions.get(n) == d for n, d in _sorted(space))]
        usable = usable if names else []
        if len(usable) < _FEWEST:
            raise ValueError(
                f"source study {name!r} has {len(usable)} complete trials with the parameters "
                f"{', '.join(names) or '(none)'} and their ranges; a warm start needs {_FEWEST}"
            )
        down = direction == StudyDirection.MAXIMIZE
        usable.sort(key=lambda t: single_value(t) or 0.0, reverse=down)
        best += usable[: int(len(usable) * _GAMMA)]
    transform = SearchSpaceTransform.unit(dict(_sorted(space)))
    points = [(transform.internal(t.params), 0.0) for t in best]
    mean, sigma, covariance = get_warm_start_mgd(points, gamma=1.0, alpha=_ALPHA)
    start = StartDistribution(
        tuple(float(m) for m in np.clip(mean, 0.0, 1.0)),
        float(sigma),
        tuple(tuple(float(c) for c in row) for row in covariance),
    )
    return dict(_sorted(space)), start


def _sorted(space: Mapping[str, BaseDistribution] | None) -> list[tuple[str, Numerical]]:
    return sorted(numerical_parameters(space or {}).items())


def _open_source(source: Study | tuple[str | BaseStorage, str]) -> Study:
    if isinstance(source, Study):
        return source
    storage, name = source
    try:
        if isinstance(storage, str):
            storage = open_storage(storage)
        return optuna.load_study(study_name=name, storage=storage)
    except FileNotFoundError as error:
        raise ValueError(f"source study {name!r} is not in its storage: {error}") from None
    except KeyError:
        raise ValueError(f"source study {name!r} is not in its storage") from None

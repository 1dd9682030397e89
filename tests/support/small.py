"""Studies on scikit-learn's digits that train in hundredths of a second per trial."""

from optuna_robustloss.search.space import SearchSpace, SpaceOptions
from optuna_robustloss.search.spec import StudySpec

#: Learns in 40 steps, so that candidates differ and few are stopped at chance.
RECIPE = {"epochs": 4, "batch_size": 16, "optimizer": "adam", "lr": 0.003, "momentum": 0}


def small_spec(**changes) -> StudySpec:
    """Return the small study's spec with other values; a recipe only changes what it names."""
    if "recipe" in changes:
        changes["recipe"] = RECIPE | changes["recipe"]
    values = {
        "name": "small",
        "datasets": ["digits"],
        "architectures": ["mlp2"],
        "noise": "symmetric:0.4",
        "recipe": RECIPE,
        "train": 150,
        "validation": 100,
        "popsize": 4,
        "generations": 2,
        "half_width": 1.5,
        "finalists": 2,
    }
    return StudySpec.model_validate(values | changes)


def search_space(prefix: str | None = None, **options) -> SearchSpace:
    """Return the space of ``SpaceOptions(**options)``."""
    return SearchSpace(SpaceOptions(**options), prefix)


def left_running(study, heartbeat=None, attributes=()):
    """Leave a running trial without further heartbeats; return its number."""
    storage = study._storage
    trial_id = storage.create_new_trial(study._study_id)
    for key, value in (heartbeat.attribute() if heartbeat else {}).items():
        storage.set_trial_system_attr(trial_id, key, value)
    for key, value in attributes:
        storage.set_trial_user_attr(trial_id, key, value)
    return storage.get_trial(trial_id).number

"""Studies that describe themselves: created, opened and refused."""

import optuna
import pytest
from optuna.trial import TrialState
from support.small import small_spec

from optuna_robustloss.search.objective import NoisyLabelObjective
from optuna_robustloss.search.spec import StudySpec
from optuna_robustloss.search.study import (
    METRIC,
    attach_spec,
    create_study,
    finished_study,
    open_study,
    trials_done,
)
from optuna_robustloss.search.worker import run_worker
from optuna_robustloss.spec_files import stored_spec

optuna.logging.set_verbosity(optuna.logging.WARNING)

SPEC = small_spec(generations=1)
OPTUNAS = small_spec(generations=1, sampler="optuna-cmaes")


@pytest.fixture
def storage():
    return optuna.storages.InMemoryStorage()


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/study.db"


def states(study):
    return [trial.state.name for trial in study.trials]


# --- Made and opened ---


def test_a_spec_that_another_process_stores_meanwhile_is_not_damaged(storage, monkeypatch):
    study = create_study(SPEC, storage, "s")
    readings = iter([{}])
    stored = dict(study.user_attrs)
    monkeypatch.setattr(
        optuna.Study, "user_attrs", property(lambda _: next(readings, stored)), raising=True
    )
    assert stored_spec(study, StudySpec) == SPEC


def test_a_study_describes_itself(url):
    create_study(SPEC, url, "mine")
    study = optuna.load_study(study_name="mine", storage=url)
    assert study.user_attrs["spec"]["hash"] == SPEC.hash
    assert study.user_attrs["spec"]["version"]
    assert stored_spec(study, StudySpec) == SPEC
    assert study.metric_names == [METRIC]
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    assert study.trials == []
    assert str(open_study(url, "mine").sampler) == "GenerationalCmaEsSampler(popsize=4)"


def test_the_start_loss_is_the_first_trial(storage):
    study = create_study(SPEC, storage, "mine")
    run_worker(study, NoisyLabelObjective(SPEC), n_trials=2)
    assert [t.user_attrs.get("start") for t in study.trials] == ["mae", None]
    assert study.trials[0].params == SPEC.space.start_point


def test_a_start_loss_of_an_optuna_sampler_waits_in_front_of_the_generations(storage):
    study = create_study(OPTUNAS, storage, "mine")
    assert states(study) == ["WAITING"]
    run_worker(study, NoisyLabelObjective(OPTUNAS))
    assert states(study) == ["COMPLETE"] * 5
    assert [t.user_attrs.get("start") for t in study.trials] == ["mae", *[None] * 4]
    assert study.trials[0].params == SPEC.space.start_point


def test_a_start_loss_that_was_interrupted_is_tried_again(storage):
    """By the generational sampler in its own slot, by the others as the next trial."""
    study = create_study(SPEC, storage, "ours")
    study.tell(study.ask(), state=TrialState.FAIL)
    run_worker(study, NoisyLabelObjective(SPEC))
    assert states(study) == ["FAIL", *["COMPLETE"] * 4]
    (again,) = [t for t in study.trials[1:] if t.user_attrs.get("start") == "mae"]
    assert again.params == study.trials[0].params == SPEC.space.start_point
    study = create_study(OPTUNAS, storage, "optunas")
    study.tell(study.ask(), state=TrialState.FAIL)
    run_worker(study, NoisyLabelObjective(OPTUNAS), n_trials=1)
    assert states(study) == ["FAIL", "COMPLETE"]
    assert study.trials[1].user_attrs["start"] == "mae"
    assert study.trials[1].params == OPTUNAS.space.start_point


@pytest.mark.parametrize("spec", [SPEC, OPTUNAS], ids=["generational", "optuna-cmaes"])
def test_to_create_a_study_again_is_to_open_it(storage, spec):
    objective = NoisyLabelObjective(spec)
    run_worker(create_study(spec, storage, "mine"), objective, n_trials=3)
    again = create_study(spec, storage, "mine")
    assert states(again) == ["COMPLETE"] * 3
    assert (trials_done(again, spec), finished_study(again, spec)) == (3, False)
    run_worker(again, objective)
    assert states(again) == ["COMPLETE"] * spec.n_trials
    run_worker(create_study(spec, storage, "mine"), objective)
    assert trials_done(again, spec) == len(again.trials) == spec.n_trials
    assert finished_study(again, spec)


def test_failed_trials_do_not_count_and_slots_do_once(storage):
    """A candidate that fails is drawn again; one that fails max_retry + 1 times counts, too."""
    spec = small_spec(generations=1, max_retry=1)
    study = create_study(spec, storage, "mine")
    trials = [study.ask() for _ in range(4)]
    for trial, value in zip(trials, (0.5, None, 0.4, 0.3), strict=True):
        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        study.tell(trial, value, state=state)
    assert (trials_done(study, spec), finished_study(study, spec)) == (3, False)
    again = study.ask()
    assert again.params == trials[1].params
    study.tell(again, state=TrialState.FAIL)
    assert (trials_done(study, spec), finished_study(study, spec)) == (4, True)


@pytest.mark.parametrize(
    ("spec", "begun"), [(SPEC, []), (OPTUNAS, ["WAITING"])], ids=["generational", "optuna-cmaes"]
)
def test_a_study_that_optuna_made_gets_the_spec_once(storage, spec, begun):
    optuna.create_study(storage=storage, study_name="theirs", direction="maximize")
    with pytest.raises(ValueError, match=r"'theirs' has no spec yet: give one.*--spec"):
        open_study(storage, "theirs")
    for given in (spec, None, spec):
        study = open_study(storage, "theirs", given)
        assert stored_spec(study, StudySpec) == spec
        assert states(study) == begun


# --- Refused ---


def test_a_study_that_minimises_is_refused_and_left_alone(storage):
    study = optuna.create_study(storage=storage, study_name="loss", direction="minimize")
    for opened in (
        lambda: create_study(SPEC, storage, "loss"),
        lambda: open_study(storage, "loss", SPEC),
    ):
        with pytest.raises(ValueError, match=r"'loss' must maximise .* --direction maximize"):
            opened()
    assert (study.trials, study.user_attrs) == ([], {})


def test_a_study_of_two_values_is_refused():
    study = optuna.create_study(directions=["maximize", "maximize"])
    with pytest.raises(ValueError, match="must maximise one value"):
        attach_spec(study, SPEC)


def test_another_spec_is_refused_with_the_difference(storage):
    study = create_study(SPEC, storage, "mine")
    other = SPEC.model_copy(update={"popsize": 5, "seed": 1})
    before = (study.user_attrs, states(study))
    for opened in (create_study, lambda s, u, n: open_study(u, n, s)):
        with pytest.raises(
            ValueError, match=r"'mine' belongs to another spec .*popsize: 4 / 5; seed: 0 / 1;"
        ):
            opened(other, storage, "mine")
    assert (study.user_attrs, states(study)) == before


def test_an_unknown_name_lists_the_studies_there_are(storage):
    create_study(SPEC, storage, "one")
    create_study(SPEC, storage, "two")
    with pytest.raises(ValueError, match=r"no study 'three' in the storage; it has: one, two"):
        open_study(storage, "three")


def test_a_spec_that_no_longer_reads_is_named(storage):
    study = create_study(SPEC, storage, "mine")
    stored = study.user_attrs["spec"]
    study.set_user_attr("spec", stored | {"values": stored["values"] | {"colour": "red"}})
    with pytest.raises(ValueError, match=r"the spec stored with study 'mine': .*'colour'"):
        open_study(storage, "mine")


SOURCES = [
    (["nope"], "source study 'nope' is not in its storage"),
    ([{"study": "old", "storage": "sqlite:///no/such.db"}], "source study 'old' is not in its"),
    (["minimised"], "has the direction MINIMIZE, the new study MAXIMIZE"),
    (["few"], "source study 'few' has 0 complete trials"),
]


def test_nothing_is_stored_until_the_sources_are_found_to_fit(url, tmp_path):
    with pytest.raises(ValueError, match="'nope' is not in its storage: there is no database"):
        create_study(small_spec(source_studies=["nope"]), url, "mine")
    assert list(tmp_path.iterdir()) == []
    optuna.create_study(storage=url, study_name="minimised")
    create_study(SPEC, url, "few")
    optuna.create_study(storage=url, study_name="theirs", direction="maximize")
    for sources, message in SOURCES:
        spec = small_spec(source_studies=sources)
        with pytest.raises(ValueError, match=message):
            create_study(spec, url, "mine")
        with pytest.raises(ValueError, match=message):
            open_study(url, "theirs", spec)
    assert optuna.load_study(study_name="theirs", storage=url).user_attrs == {}
    assert set(optuna.get_all_study_names(url)) == {"minimised", "few", "theirs"}
    create_study(SPEC, url, "mine")  # the corrected file


@pytest.mark.parametrize("name", ["", "a\x1b[2J", "a\nb", "a\u202eb", "\udc80", "a" * 513])
def test_a_name_that_is_not_printable_is_refused(url, tmp_path, name):
    with pytest.raises(ValueError, match="has 1 to 512 printable characters"):
        create_study(SPEC, url, name)
    assert list(tmp_path.iterdir()) == []


def test_a_name_is_text_and_no_path(url):
    for name in ("a/b", "..", "%41 ä 数", "a" * 512):
        assert create_study(SPEC, url, name).study_name == name


# --- Work ---


def test_missing_data_shows_before_a_trial_is_started(storage, tmp_path):
    spec = small_spec(datasets=["mnist"])
    study = create_study(spec, storage, "mine")
    with pytest.raises(FileNotFoundError):
        run_worker(study, NoisyLabelObjective(spec, root=tmp_path))
    assert states(study) == []


def test_the_callback_sees_every_trial_of_this_worker(storage):
    seen = []
    study, objective = create_study(SPEC, storage, "mine"), NoisyLabelObjective(SPEC)
    run_worker(study, objective, n_trials=3, on_trial=lambda _, trial: seen.append(trial.number))
    assert seen == [0, 1, 2]

"""Rows that another client wrote wrongly: left out with a warning, and the study goes on."""

import json
import logging
import sqlite3
from contextlib import closing

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState
from support.small import small_spec

from optuna_robustloss.attributes import GENERATION, WORKER
from optuna_robustloss.distributed.damaged_rows import warn_of_damage
from optuna_robustloss.distributed.storage import open_storage
from optuna_robustloss.search.objective import NoisyLabelObjective
from optuna_robustloss.search.selection import choose_finalists, stored_selection
from optuna_robustloss.search.status import status_of
from optuna_robustloss.search.study import (
    attach_spec,
    create_study,
    open_study,
    read_generations,
    replay,
)
from optuna_robustloss.search.worker import run_worker

SPEC = small_spec(generations=1)


class Quick(NoisyLabelObjective):
    """Worth its first coefficient."""

    def evaluate(self, trials):
        return [0.5 + self.spec.space.suggest(trial).theta[0] / 10 for trial in trials]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A study of which three of four trials are done."""
    path = tmp_path_factory.mktemp("template") / "study.db"
    study = create_study(SPEC, open_storage(f"sqlite:///{path}", create=True), "s")
    run_worker(study, Quick(SPEC), n_trials=3)
    study._storage.remove_session()
    return path


def damaged(template, folder, *statements):
    """A copy of the study after some SQL statements, with all its constraints off."""
    path = folder / "study.db"
    path.write_bytes(template.read_bytes())
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        for statement in statements:
            connection.execute(*((statement,) if isinstance(statement, str) else statement))
    return f"sqlite:///{path}"


def finish(url):
    """Look at a study, end it, and choose from it; return it and its spec."""
    study = open_study(open_storage(url), "s")
    spec = attach_spec(study, None)
    status_of(study, spec)
    stored_selection(study)
    for attribute in (GENERATION, WORKER):
        attribute.read(study.trials[2])
    run_worker(study, Quick(spec), lease=0.3)
    assert status_of(study, spec).finished
    finalists = choose_finalists(study, spec)
    assert len(finalists) == 4
    study._storage.remove_session()
    return study


TRIAL = "(SELECT trial_id FROM trials WHERE number = 2)"
LEASE = "generational-cma:lease"


def set_attr(key, text, table="trial_system_attributes"):
    column, owner = ("trial_id", TRIAL) if table.startswith("trial") else ("study_id", 1)
    insert = f"INSERT OR REPLACE INTO {table} ({column}, key, value_json) VALUES ({owner}, ?, ?)"
    return insert, (key, text)


#: What is damaged, the statement, the number of trials that are evaluated again, the warning.
DAMAGES = [
    ("a NULL value", f"UPDATE trial_values SET value = NULL WHERE trial_id = {TRIAL}", 1, "value"),
    ("a text value", f"UPDATE trial_values SET value = 'x' WHERE trial_id = {TRIAL}", 1, "value"),
    (
        "a second value",
        "INSERT INTO trial_values (trial_id, objective, value, value_type) "
        f"VALUES ({TRIAL}, 1, 0.5, 'FINITE')",
        1,
        "value",
    ),
    ("no value", f"DELETE FROM trial_values WHERE trial_id = {TRIAL}", 1, "value"),
    (
        "an objective beyond the values",
        f"UPDATE trial_values SET objective = 4 WHERE trial_id = {TRIAL}",
        0,
        None,
    ),
    (
        "an unknown type of value",
        f"UPDATE trial_values SET value_type = 'NAN' WHERE trial_id = {TRIAL}",
        1,
        "row is damaged",
    ),
    (
        "a NULL parameter",
        f"UPDATE trial_params SET param_value = NULL WHERE trial_id = {TRIAL} "
        "AND param_name = 'theta_3'",
        1,
        "its parameter 'theta_3'",
    ),
    (
        "a text parameter",
        f"UPDATE trial_params SET param_value = 'x' WHERE trial_id = {TRIAL} "
        "AND param_name = 'theta_3'",
        1,
        "its parameter 'theta_3'",
    ),
    (
        "an empty distribution",
        f"UPDATE trial_params SET distribution_json = '{{}}' WHERE trial_id = {TRIAL}",
        1,
        "its parameter 'theta_0'",
    ),
    ("a date that is text", "UPDATE trials SET datetime_start = 'x' WHERE number = 2", 1, "row is"),
    ("an unknown state", "UPDATE trials SET state = 'GOOD' WHERE number = 2", 1, "row is damaged"),
    ("a claim that is no JSON", set_attr("generational-cma:claim", "[1,"), 1, "attribute"),
    ("a claim of text", set_attr("generational-cma:claim", '["a", 0, 2, "x"]'), 1, None),
    ("a claim beyond 64 bits", set_attr("generational-cma:claim", f"[0, {10**30}, 2, 0]"), 1, None),
    (
        "a generation of text",
        set_attr("generation", '"x"', "trial_user_attributes"),
        0,
        "'generation' is left out: expected int, got 'x'",
    ),
    ("a worker that is a list", set_attr("worker", "[1]", "trial_user_attributes"), 0, None),
    ("a lease of a finished trial", set_attr(LEASE, f"[1e400, 2, {10**30}, null]"), 0, None),
    (
        "a selection of text",
        "INSERT INTO study_user_attributes (study_id, key, value_json) "
        "VALUES (1, 'selection', '{\"trials\": 3, \"finalists\": [1]}')",
        0,
        "attribute 'selection' is left out",
    ),
    (
        "a study attribute that is no JSON",
        "INSERT INTO study_user_attributes (study_id, key, value_json) VALUES (1, 'x', '{')",
        0,
        "study 1: its attribute 'x' is left out",
    ),
]


def test_a_damaged_row_is_left_out_and_the_study_goes_on(template, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    for what, statement, again, warning in DAMAGES:
        caplog.clear()
        warn_of_damage.cache_clear()
        url = damaged(template, tmp_path, statement)
        study = finish(url)
        told = [t.number for g in read_generations(study).told for t in g]
        assert len(told) == 4, what
        assert (2 not in told) == bool(again), what
        assert len(study.trials) == 4 + again, what
        if warning is not None:
            assert warning in caplog.text, what
            assert "trial 2" in caplog.text or "study" in warning or "selection" in warning, what
        assert replay(study).optimizer.state == read_generations(study).optimizer.state, what


RUNNING = "INSERT INTO trials (number, study_id, state) VALUES (3, 1, 'RUNNING')"
LEASES = [f'[1e9, "elsewhere", {10**30}, 1]', f'[{10**30}, "m", 1, {2**63}]', '"x"', "{", "[NaN]"]


def test_a_damaged_lease_expires(template, tmp_path):
    for lease in LEASES:
        insert = (
            "INSERT INTO trial_system_attributes (trial_id, key, value_json) "
            "VALUES ((SELECT trial_id FROM trials WHERE number = 3), ?, ?)"
        )
        study = finish(damaged(template, tmp_path, RUNNING, (insert, (LEASE, lease))))
        assert study.trials[3].state == TrialState.FAIL, lease
        assert [t.state.name for t in study.trials].count("COMPLETE") == 4, lease


@pytest.mark.parametrize(
    "changes",
    [{"popsize": 10**9}, {"popsize": "4"}, {"popsize": True}, {"x0": {"theta_0": "x"}},
     {"space": {"theta_0": "{}"}}, {"sigma0": [1]}, {"unknown": 1}, {"start": {}}, {"seed": -1},
     {"start": {"mean": [0.5], "sigma": 0.1, "covariance": [[1]]}}],
    ids=repr,
)  # fmt: skip
def test_a_damaged_configuration_of_the_sampler_is_one_message(template, tmp_path, changes):
    key = "generational-cma:config"
    with closing(sqlite3.connect(template)) as connection:
        query = "SELECT value_json FROM study_system_attributes WHERE key = ?"
        (text,) = connection.execute(query, (key,)).fetchone()
    config = json.dumps(json.loads(json.loads(text)) | changes)
    change = set_attr(key, json.dumps(config), "study_system_attributes")
    url = damaged(template, tmp_path, change)
    study = open_study(open_storage(url), "s")
    for use in (lambda: status_of(study, SPEC), lambda: run_worker(study, Quick(SPEC))):
        with pytest.raises(ValueError, match=f"attribute '{key}', .* is damaged") as error:
            use()
        assert len(str(error.value)) < 300


@pytest.mark.parametrize("text", ["5", '"x"', "[]", '{"values": 3}', "{}", "{"])
def test_a_damaged_spec_is_one_message(template, tmp_path, text):
    url = damaged(template, tmp_path, set_attr("spec", text, "study_user_attributes"))
    with pytest.raises(ValueError, match=r"'s' (is damaged|has no spec yet)|a mapping"):
        open_study(open_storage(url), "s")


def test_five_objectives_through_optunas_own_interface(tmp_path):
    """In a storage that is no database, too."""
    study = create_study(SPEC, f"journal:{tmp_path}/study.log", "s")
    trial = study.ask()
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    study._storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, values)
    run_worker(study, Quick(SPEC))
    told = [t.number for g in read_generations(study).told for t in g]
    assert told == [4, 1, 2, 3]
    assert status_of(study, SPEC).finished
    assert len(choose_finalists(study, SPEC)) == 4


def test_a_study_of_several_objectives_is_read_as_it_is(tmp_path):
    storage = open_storage(f"sqlite:///{tmp_path}/two.db", create=True)
    study = optuna.create_study(storage=storage, directions=["maximize", "minimize"])
    study.tell(study.ask(), [1.0, 2.0])
    assert study.trials[0].values == [1.0, 2.0]


COLUMNS = [
    *(("trials", c) for c in ("number", "state", "datetime_start", "datetime_complete")),
    *(("trial_values", c) for c in ("objective", "value", "value_type")),
    *(("trial_params", c) for c in ("param_name", "param_value", "distribution_json")),
    *(("trial_user_attributes", c) for c in ("key", "value_json")),
    *(("trial_system_attributes", c) for c in ("key", "value_json")),
]
VALUES = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=8),
    st.sampled_from(["{}", "[]", "null", "[" * 5000, "1e999", '"\\ud800"', "NaN", "COMPLETE"]),
)


def fuzz(examples):
    def decorate(test):
        given_rows = given(st.lists(st.tuples(st.sampled_from(COLUMNS), VALUES), max_size=2))
        checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
        return settings(
            max_examples=examples, deadline=None, suppress_health_check=checks, database=None
        )(given_rows(test))

    return decorate


def check_any_row(template, folder, changes):
    statements = [
        (f"UPDATE OR IGNORE {t} SET {c} = ? WHERE trial_id = {TRIAL}", (value,))
        for (t, c), value in changes
    ]
    url = damaged(template, folder, *statements)
    study = open_study(open_storage(url), "s")
    status_of(study, SPEC)
    assert read_generations(study).filled >= 1
    assert len(choose_finalists(study, SPEC)) >= 2
    for trial in study.trials:
        GENERATION.read(trial)
    study._storage.remove_session()


@fuzz(12)
def test_any_row_may_hold_anything(template, tmp_path, changes):
    check_any_row(template, tmp_path, changes)


@pytest.mark.slow
@fuzz(3000)
def test_any_row_may_hold_anything_for_long(template, tmp_path, changes):
    check_any_row(template, tmp_path, changes)

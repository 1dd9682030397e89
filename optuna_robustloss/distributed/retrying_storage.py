"""A storage around another one, which retries each call while that is locked or unavailable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, GrpcStorageProxy
from optuna.trial import TrialState
from sqlalchemy import exc

from optuna_robustloss.distributed.retry import RetryPolicy, Transient, failed_call
from optuna_robustloss.distributed.trial_io import database_of, lock_trial


def _retried(name: str) -> Any:
    """Return a method that calls the one of this name on the storage inside, with retries."""

    def method(self: RetryingStorage, *args: Any, **kwargs: Any) -> Any:
        return self.retry(lambda: getattr(self.inner, name)(*args, **kwargs))

    method.__name__ = name
    method.__doc__ = f"See ``optuna.storages.BaseStorage.{name}``."
    return method


class RetryingStorage(BaseStorage):
    """An Optuna storage whose calls are retried through a ``RetryPolicy``.

    Errors that are not transient are raised at once, with the driver's own reason. A connection
    that breaks during COMMIT leaves open whether the transaction was committed, so a retried call
    may meet its own result:

    - ``create_new_trial`` may leave a RUNNING trial without a worker, or a second copy of an
      enqueued one; its lease never begins, and it is failed as stale.
    - ``set_trial_state_values`` recognises its own result in a finished trial. A WAITING trial that
      it made RUNNING looks like another worker's, and False is returned.
    - ``create_new_study`` may raise ``DuplicatedStudyError``, and ``delete_study`` ``KeyError``.
    - ``write_trial`` recognises its own parameters.

    All others are idempotent.

    Args:
        inner: the storage whose calls are retried: a cached database, or a gRPC client.
        policy: how long, and for which errors.

    """

    def __init__(self, inner: BaseStorage, policy: RetryPolicy) -> None:
        self.inner = inner
        self.policy = policy

    def retry(self, call: Callable[[], Any]) -> Any:
        """Call a function of the storage inside until it succeeds or fails permanently.

        Raises:
            StorageInternalError: the storage failed, or did not answer for long; says why.

        """
        try:
            return self.policy.call(call, self._recover)
        except Exception as error:
            failed = failed_call(error, self.policy.url)
            if failed is error:
                raise
            raise failed from None

    def _recover(self, kind: Transient) -> None:
        """Drop the failed session, and the connections to a server that is unavailable."""
        database = database_of(self.inner)
        if isinstance(self.inner, GrpcStorageProxy):
            self.inner._setup()  # by itself a channel rests up to two minutes before it reconnects
        if database is None:
            return
        with suppress(exc.SQLAlchemyError):
            database.scoped_session.remove()
            if kind == "unavailable" and database.engine.name != "sqlite":
                database.engine.dispose()

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Finish or start a trial; a retried call recognises the result of an earlier attempt."""
        database = database_of(self.inner)
        attempts = 0

        def finish_trial() -> bool:
            nonlocal attempts
            attempts += 1
            if database is not None:
                # Optuna reads the state and then writes it: two workers could both read that the
                # trial is running, and the later one overwrite the value of the other.
                lock_trial(database, database.scoped_session(), trial_id)
            try:
                return self.inner.set_trial_state_values(trial_id, state, values)
            except UpdateFinishedTrialError:
                stored = self.inner.get_trial(trial_id)
                given = list(values) if values is not None else None
                if attempts == 1 or stored.state != state or stored.values != given:
                    raise
                return True

        return bool(self.retry(finish_trial))

    def remove_session(self) -> None:
        """Close this thread's session with the database."""
        self.inner.remove_session()

    create_new_study = _retried("create_new_study")
    delete_study = _retried("delete_study")
    set_study_user_attr = _retried("set_study_user_attr")
    set_study_system_attr = _retried("set_study_system_attr")
    get_study_id_from_name = _retried("get_study_id_from_name")
    get_study_name_from_id = _retried("get_study_name_from_id")
    get_study_directions = _retried("get_study_directions")
    get_study_user_attrs = _retried("get_study_user_attrs")
    get_study_system_attrs = _retried("get_study_system_attrs")
    get_all_studies = _retried("get_all_studies")
    create_new_trial = _retried("create_new_trial")
    set_trial_param = _retried("set_trial_param")
    get_trial_id_from_study_id_trial_number = _retried("get_trial_id_from_study_id_trial_number")
    get_trial_number_from_id = _retried("get_trial_number_from_id")
    get_trial_param = _retried("get_trial_param")
    set_trial_intermediate_value = _retried("set_trial_intermediate_value")
    set_trial_user_attr = _retried("set_trial_user_attr")
    set_trial_system_attr = _retried("set_trial_system_attr")
    get_trial = _retried("get_trial")
    get_all_trials = _retried("get_all_trials")
    get_n_trials = _retried("get_n_trials")
    get_best_trial = _retried("get_best_trial")
    get_trial_params = _retried("get_trial_params")
    get_trial_user_attrs = _retried("get_trial_user_attrs")
    get_trial_system_attrs = _retried("get_trial_system_attrs")

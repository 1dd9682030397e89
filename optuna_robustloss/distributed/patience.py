"""Databases that may be away for a while: calls are repeated until they are back."""

from __future__ import annotations

import functools
import importlib
import logging
import random
import threading
import time
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, GrpcStorageProxy, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import exc

from optuna_robustloss.distributed.bulk import read_trial, read_trials
from optuna_robustloss.distributed.passwords import safe_url
from optuna_robustloss.distributed.retry import Passing, grpc_passing, passing, reason
from optuna_robustloss.distributed.sessions import prepare_sessions
from optuna_robustloss.distributed.trial_io import touch

logger = logging.getLogger(__name__)

#: Lock conflicts are everyday life among workers; they are told when they take this many seconds.
_UNUSUAL = 5.0

#: The user's own random numbers stay theirs, and forked workers do not share ours.
_random = random.SystemRandom()

T = TypeVar("T")
C = TypeVar("C", bound=type)


class Patience:
    """Repeats calls for ``seconds`` while a database is away, and logs each outage once.

    Args:
        storage: its URL, for messages, which show it without the password.
        seconds: until a call fails, over all of its repetitions.
        passing: whether an error will pass.
        shortest: the first pause, in seconds; each is at random up to twice as long as the last.
        longest: the longest pause.

    """

    def __init__(
        self,
        storage: str,
        seconds: float,
        *,
        passing: Callable[[BaseException], Passing | None] = passing,
        shortest: float = 0.1,
        longest: float = 10.0,
    ) -> None:
        self.storage, self.seconds, self.passing = storage, seconds, passing
        self.shortest, self.longest = shortest, longest
        self._inside = threading.local()
        self._lock = threading.Lock()
        self._since: float | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        options: Any = {"passing": self.passing, "shortest": self.shortest, "longest": self.longest}
        return functools.partial(Patience, **options), (self.storage, self.seconds)

    def run(self, call: Callable[[], T], recover: Callable[[Passing], None] | None = None) -> T:
        """Call until it succeeds or fails for good; ``recover`` runs before each repetition.

        A call within a call is not repeated by itself.

        Raises:
            StorageInternalError: the database was away for too long.

        """
        if getattr(self._inside, "busy", False):
            return call()
        self._inside.busy = True
        try:
            return self._repeat(call, recover)
        finally:
            self._inside.busy = False

    def _repeat(self, call: Callable[[], T], recover: Callable[[Passing], None] | None) -> T:
        started, pause = time.monotonic(), self.shortest
        while True:
            try:
                result = call()
            except Exception as error:
                kind = self.passing(error)
                if kind is None:
                    raise
                said = reason(error, self.storage)
            else:
                self._back()
                return result
            if recover is not None:
                recover(kind)
            gone = time.monotonic() - started
            if gone >= self.seconds:
                raise StorageInternalError(
                    f"the storage {safe_url(self.storage)} did not answer for {gone:.0f} s: {said}"
                )
            if kind == "away" or gone > _UNUSUAL:
                self._away(started, said)
            time.sleep(min(pause * _random.uniform(0.5, 1.0), self.seconds - gone))
            pause = min(2 * pause, self.longest)

    def _away(self, started: float, said: str) -> None:
        with self._lock:
            if self._since is not None:
                return
            self._since = started
        logger.warning(
            "the storage %s does not answer; waiting up to %.0f s for it: %s",
            safe_url(self.storage),
            self.seconds,
            said,
        )

    def _back(self) -> None:
        if self._since is None:  # the usual case costs no lock
            return
        with self._lock:
            since, self._since = self._since, None
        if since is not None:
            gone = time.monotonic() - since
            logger.info("the storage %s is back after %.1f s", safe_url(self.storage), gone)


class _Patient(BaseStorage):
    """A storage that waits while it is away."""

    patience: Patience

    def recover(self, kind: Passing) -> None:
        """Prepare the repetition of a call."""

    def lock_trial(self, trial_id: int) -> None:
        """Keep others from finishing a trial until the present transaction ends."""

    def patiently(self, call: Callable[[], T]) -> T:
        """Repeat ``call`` until the storage is back."""
        return self.patience.run(call, self.recover)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Finish or claim a trial; a repeated call recognises what the one before has done."""
        tries = 0
        finish = super().set_trial_state_values  # type: ignore[safe-super]

        def attempt() -> bool:
            nonlocal tries
            tries += 1
            self.lock_trial(trial_id)
            try:
                return finish(trial_id, state, values)
            except UpdateFinishedTrialError:
                if tries == 1:
                    raise
                trial = self.get_trial(trial_id)
                if trial.state != state or trial.values != (values and list(values)):
                    raise
                return True

        return self.patiently(attempt)


def _patient(method: Callable[..., T]) -> Callable[..., T]:
    @functools.wraps(method)
    def call(self: _Patient, *args: Any, **kwargs: Any) -> T:
        return self.patiently(lambda: method(self, *args, **kwargs))

    return call


def _all_calls_patient(storage: C) -> C:
    """Class decorator: make all calls of the storage interface patient.

    Those that Optuna's cache makes behind the interface are among them.
    """
    public = {name for name in vars(BaseStorage) if not name.startswith("_")}
    local = {"remove_session", "check_trial_is_updatable", *vars(_Patient)}
    behind = {"_create_new_trial", "_set_trial_param", "_get_trials", "_get_best_trial_id"}
    for name in (public - local) | behind | {"record_heartbeat", "_get_stale_trial_ids"}:
        method = getattr(storage, name, None)  # other versions of Optuna have others
        if callable(method):
            setattr(storage, name, _patient(method))
    return storage


@_all_calls_patient
class PatientStorage(_Patient, RDBStorage):
    """Optuna's storage in a database, which waits while the database is away, and reads faster.

    A call that fails because of a restart, a broken connection, a failover or a lock is repeated
    for up to ``patience.seconds``; all other errors are raised at once.

    Where the connection broke during COMMIT, nobody knows whether the database has committed, so
    the repeated call may find its own work done:

    - ``create_new_trial`` may leave a RUNNING trial that no worker owns (or, with a template, a
      second copy of it); whoever watches over the workers has to fail it later.
    - ``set_trial_state_values`` recognises its own result in a finished trial. A WAITING trial that
      it made RUNNING looks like another worker's (False is returned), and runs without an owner.
    - ``create_new_study`` may raise ``DuplicatedStudyError``, and ``delete_study`` ``KeyError``.
    - ``write_trial`` recognises its own parameters.

    All others can be repeated without harm.
    """

    def __init__(
        self,
        url: str,
        engine_kwargs: dict[str, Any] | None = None,
        *,
        patience: Patience | None = None,
        **options: Any,
    ) -> None:
        self.patience = patience if patience is not None else Patience(url, 300.0)
        super().__init__(url, engine_kwargs, **options)
        prepare_sessions(self.engine)

    def recover(self, kind: Passing) -> None:
        """Forget the failed session, and the connections to a database that is away."""
        with suppress(exc.SQLAlchemyError):
            self.scoped_session.remove()
            if kind == "away" and self.engine.name != "sqlite":
                self.engine.dispose()

    def lock_trial(self, trial_id: int) -> None:
        """Begin the transaction that finishes a trial with a write.

        Optuna reads the state and then writes it; on SQLite, which has no FOR UPDATE, two workers
        could both read that the trial is running, and the later would overwrite the other's value.
        """
        if self.engine.name == "sqlite":
            self.scoped_session().execute(touch(trial_id))

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial, in plain columns as all others."""
        trial = read_trial(self, trial_id)
        return super().get_trial(trial_id) if trial is None else trial

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        query = (study_id, states, included_trial_ids, trial_id_greater_than)
        trials = read_trials(self, *query)
        return super()._get_trials(*query) if trials is None else trials


@_all_calls_patient
class PatientGrpcStorage(_Patient, GrpcStorageProxy):
    """Optuna's gRPC client, which waits while the server cannot be reached.

    An error of the database behind the server is the server's to wait for: run it with a
    ``PatientStorage``.
    """

    def __init__(self, *, host: str, port: int, patience: float = 300.0) -> None:
        self.patience = Patience(f"grpc://{host}:{port}", patience, passing=grpc_passing)
        super().__init__(host=host, port=port)

    def recover(self, kind: Passing) -> None:
        """Nothing to do: gRPC connects again by itself."""

    def _setup(self) -> None:
        super()._setup()
        # By default gRPC rests up to two minutes before it connects again.
        rest = ("grpc.max_reconnect_backoff_ms", 5000)
        self._channel.close()
        self._channel = importlib.import_module("grpc").insecure_channel(
            f"{self._host}:{self._port}", options=[("grpc.max_receive_message_length", -1), rest]
        )
        self._stub = type(self._stub)(self._channel)
        self._cache.grpc_client = self._stub

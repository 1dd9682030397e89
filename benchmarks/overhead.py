"""What a trial costs beside its objective: ask, twelve suggested floats and tell, in databases."""

from __future__ import annotations

import gc
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.distributions import FloatDistribution, distribution_to_json
from optuna.samplers import BaseSampler, CmaEsSampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial
from rich.table import Table
from support import postgres

from benchmarks.quartiles import Quartiles
from optuna_robustloss.distributed.storage import open_storage
from optuna_robustloss.distributed.trial_io import database_of
from optuna_robustloss.sampler.sampler import GenerationalCmaEsSampler

POPSIZE = 12
SPACE = {f"x{i:02}": FloatDistribution(-5, 5) for i in range(12)}
SIZES = (100, 1000, 5000)
STUDY = "overhead"
#: Trials of a new object that are not measured.
WARM_UP = 2


def optunas() -> BaseSampler:
    return CmaEsSampler(popsize=POPSIZE, seed=1)


def ours() -> BaseSampler:
    return GenerationalCmaEsSampler(POPSIZE, seed=1, search_space=SPACE)


def patient(url: str) -> BaseStorage:
    return open_storage(url, create=True)


@dataclass(frozen=True)
class Contender:
    """A sampler on a storage; both are made anew for each cold start."""

    name: str
    sampler: Callable[[], BaseSampler]
    storage: Callable[[str], BaseStorage]


CONTENDERS = (
    Contender("CmaEsSampler, RDBStorage", optunas, RDBStorage),
    Contender("ours, RDBStorage", ours, RDBStorage),
    Contender("ours, open_storage", ours, patient),
)


@dataclass(frozen=True)
class Row:
    """One contender on one database that has so many trials; cold starts end with the suggests."""

    database: str
    trials: int
    contender: str
    warm: Quartiles
    cold: Quartiles


# Studies with a past


def past(sampler: BaseSampler, trials: int) -> optuna.Study:
    """Run a study in memory, with random values: CMA-ES moves and does not converge."""
    rng = random.Random(0)
    study = optuna.create_study(sampler=sampler)
    for _ in range(trials):
        study.tell(ask(study), rng.random())
    return study


def ask(study: optuna.Study) -> optuna.Trial:
    trial = study.ask()
    for name, distribution in SPACE.items():
        trial.suggest_float(name, distribution.low, distribution.high)
    return trial


def copy(source: optuna.Study, trials: int, url: str) -> None:
    """Write a study with its first trials into a new database, many rows in a statement."""
    storage = RDBStorage(url)
    study = optuna.create_study(study_name=STUDY, storage=storage)
    for key, value in source._storage.get_study_system_attrs(source._study_id).items():
        storage.set_study_system_attr(study._study_id, key, value)
    kept = source.get_trials(deepcopy=False)[:trials]
    table = models.TrialModel.__table__
    database = database_of(storage)
    assert database is not None
    with database.engine.begin() as connection:
        connection.execute(sa.insert(table), [_row(t, study._study_id) for t in kept])
        numbers = sa.select(table.c.number, table.c.trial_id)
        ids = dict(connection.execute(numbers.where(table.c.study_id == study._study_id)).all())
        for model, rows in (
            (models.TrialValueModel, _values),
            (models.TrialParamModel, _params),
            (models.TrialSystemAttributeModel, _attributes),
        ):
            values = [row | {"trial_id": ids[t.number]} for t in kept for row in rows(t)]
            connection.execute(sa.insert(model.__table__), values)
        connection.execute(sa.text("ANALYZE"))
    close(storage)


def _row(trial: FrozenTrial, study_id: int) -> dict[str, Any]:
    times = {n: getattr(trial, n) for n in ("datetime_start", "datetime_complete")}
    return {"number": trial.number, "study_id": study_id, "state": trial.state, **times}


def _values(trial: FrozenTrial) -> Iterator[dict[str, Any]]:
    stored, kind = models.TrialValueModel.value_to_stored_repr(trial.value)
    yield {"objective": 0, "value": stored, "value_type": kind}


def _params(trial: FrozenTrial) -> Iterator[dict[str, Any]]:
    for name, value in trial.params.items():
        text = distribution_to_json(trial.distributions[name])
        yield {"param_name": name, "param_value": value, "distribution_json": text}


def _attributes(trial: FrozenTrial) -> Iterator[dict[str, Any]]:
    for key, value in trial.system_attrs.items():
        yield {"key": key, "value_json": json.dumps(value)}


def close(storage: BaseStorage) -> None:
    storage.remove_session()
    if (database := database_of(storage)) is not None:
        database.engine.dispose()


# Measurements


def load(contender: Contender, url: str) -> optuna.Study:
    storage = contender.storage(url)
    return optuna.load_study(study_name=STUDY, storage=storage, sampler=contender.sampler())


def cold(contender: Contender, url: str) -> float:
    """Return the seconds of the first ask and its suggests; the database is open by then."""
    study = load(contender, url)
    gc.collect()
    begin = perf_counter()
    trial = ask(study)
    seconds = perf_counter() - begin
    study.tell(trial, random.random())
    close(study._storage)
    return seconds


def warm(study: optuna.Study) -> float:
    begin = perf_counter()
    study.tell(ask(study), random.random())
    return perf_counter() - begin


def measure(
    database: str,
    new_url: Callable[[str], str],
    pasts: Mapping[Callable[[], BaseSampler], optuna.Study],
    trials: int,
    warm_rounds: int,
    cold_rounds: int,
) -> Iterator[Row]:
    """Measure all contenders in turn, in each round in another order."""
    urls = [new_url(f"overhead_{trials}_{i}") for i in range(len(CONTENDERS))]
    cases = list(zip(CONTENDERS, urls, strict=True))
    for contender, url in cases:
        copy(pasts[contender.sampler], trials, url)
    order = random.Random(0)
    colds: dict[str, list[float]] = {c.name: [] for c in CONTENDERS}
    for _ in range(cold_rounds):
        for contender, url in order.sample(cases, len(cases)):
            colds[contender.name].append(cold(contender, url))
    studies = {contender.name: load(contender, url) for contender, url in cases}
    warms: dict[str, list[float]] = {c.name: [] for c in CONTENDERS}
    for i in range(-WARM_UP, warm_rounds):
        for name in order.sample(list(studies), len(studies)):
            seconds = warm(studies[name])
            if i >= 0:
                warms[name].append(seconds)
    for name, study in studies.items():
        close(study._storage)
        yield Row(database, trials, name, Quartiles.of(warms[name]), Quartiles.of(colds[name]))


@contextmanager
def databases(postgresql: str | None) -> Iterator[dict[str, Callable[[str], str]]]:
    """Yield for each database what makes a new one; PostgreSQL if a server is or can be had.

    Args:
        postgresql: URL of an empty database in which other databases may be created.

    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="overhead-")))
        made = {"SQLite": lambda name: f"sqlite:///{folder / name}.db"}
        if postgresql is not None:
            made["PostgreSQL"] = lambda name: _created(stack, postgresql, name)
        elif postgres.skip_reason() is None:
            server = stack.enter_context(postgres.PostgresServer())
            made["PostgreSQL"] = server.create_database
        yield made


def _created(stack: ExitStack, url: str, name: str) -> str:
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))

    def drop() -> None:
        with engine.connect() as connection:
            connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
        engine.dispose()

    stack.callback(drop)
    return sa.make_url(url).set(database=name).render_as_string(hide_password=False)


def rows(quick: bool, postgresql: str | None) -> Iterator[Row]:
    """Measure all databases and sizes; `quick` leaves out the largest size."""
    sizes = SIZES[:-1] if quick else SIZES
    pasts = {sampler: past(sampler(), max(sizes)) for sampler in (optunas, ours)}
    with databases(postgresql) as made:
        for (database, new_url), trials in product(made.items(), sizes):
            warms, colds = (POPSIZE, 3) if quick else (3 * POPSIZE, 5 if trials < SIZES[-1] else 3)
            yield from measure(database, new_url, pasts, trials, warms, colds)


def table(measured: Sequence[Row]) -> Table:
    """Show medians and quartiles in milliseconds, and the ratios to Optuna's sampler."""
    shown = Table(
        title="ask + 12 × suggest_float + tell, and the first ask of a new process\n"
        "(milliseconds: median, quartiles; interleaved on one machine)"
    )
    for head in ("database", "trials", "sampler, storage"):
        shown.add_column(head, justify="right" if head == "trials" else "left")
    for head in ("warm trial", "ratio", "cold ask + suggest", "ratio"):
        shown.add_column(head, justify="right", no_wrap=True)
    base, last = None, None
    for row in measured:
        case = (row.database, row.trials)
        base = row if case != last else base
        shown.add_row(
            row.database if case != last else "",
            str(row.trials) if case != last else "",
            row.contender,
            _milliseconds(row.warm),
            f"{row.warm.median / base.warm.median:.2f}",
            _milliseconds(row.cold),
            f"{row.cold.median / base.cold.median:.2f}",
            end_section=row.contender == CONTENDERS[-1].name,
        )
        last = case
    return shown


def _milliseconds(seconds: Quartiles) -> str:
    low, middle, high = (1000 * s for s in (seconds.low, seconds.median, seconds.high))
    return f"{middle:.1f} ({low:.1f} … {high:.1f})"


def as_json(row: Row) -> dict[str, Any]:
    """Return a row for a file, in seconds."""
    return asdict(row)

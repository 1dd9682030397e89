"""Which errors are transient, by what the drivers say."""

import sqlite3

import pytest
import sqlalchemy as sa
from optuna.exceptions import StorageInternalError

from optuna_robustloss.distributed.retry import describe_error, failed_call, transient_kind


class SqlState(Exception):
    def __init__(self, sqlstate, text=""):
        super().__init__(text)
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    ("kind", "cause", "expected"),
    [
        (sa.exc.OperationalError, SqlState("57P01"), "unavailable"),
        (sa.exc.OperationalError, SqlState("57P03"), "unavailable"),
        (sa.exc.OperationalError, SqlState("08006"), "unavailable"),
        (sa.exc.OperationalError, SqlState("53300"), "unavailable"),
        (sa.exc.InternalError, SqlState("25006"), "unavailable"),
        (sa.exc.OperationalError, SqlState("40P01"), "locked"),
        (sa.exc.OperationalError, SqlState("57014"), None),
        (sa.exc.ProgrammingError, SqlState("42P01"), None),
        (sa.exc.OperationalError, SqlState(None, "connection refused"), "unavailable"),
        (
            sa.exc.OperationalError,
            SqlState(None, "FATAL: the database system is starting up"),
            "unavailable",
        ),
        (sa.exc.OperationalError, SqlState(None, "FATAL: password authentication failed"), None),
        (sa.exc.OperationalError, SqlState(None, 'FATAL: database "d" does not exist'), None),
        (
            sa.exc.OperationalError,
            Exception(2013, "Lost connection to MySQL server"),
            "unavailable",
        ),
        (sa.exc.InterfaceError, Exception(0, ""), "unavailable"),
        (sa.exc.OperationalError, Exception(1213, "Deadlock found"), "locked"),
        (sa.exc.OperationalError, Exception(1045, "Access denied"), None),
        (sa.exc.ProgrammingError, Exception(1146, "Table doesn't exist"), None),
        (sa.exc.IntegrityError, Exception("UNIQUE constraint failed"), None),
        (sa.exc.InterfaceError, sqlite3.InterfaceError("type 'object' is not supported"), None),
        (sa.exc.OperationalError, sqlite3.OperationalError("no such table"), None),
        (sa.exc.OperationalError, sqlite3.OperationalError("database is locked"), "locked"),
    ],
)
def test_which_errors_are_transient(kind, cause, expected):
    error = kind("SELECT 1", {}, cause)
    assert transient_kind(error) == expected
    wrapped = StorageInternalError("in Optuna's words")
    wrapped.__cause__ = error
    assert transient_kind(wrapped) == expected


@pytest.mark.parametrize("length", range(380, 402, 3))
def test_a_long_reason_is_not_cut_within_the_password(length):
    error = sa.exc.OperationalError("SELECT 1", {}, Exception("x" * length + "\n hunter2-secret"))
    said = describe_error(error, "mysql://me:hunter2-secret@host/db")
    assert said.startswith("x" * 380)
    assert "hunt" not in said
    assert "\n" not in said
    assert len(said) <= 400


def test_a_fix_is_said_once_when_a_described_error_is_described_again():
    url = "sqlite:///s.db"
    full = failed_call(sa.exc.OperationalError("", {}, Exception("disk is full")), url)
    assert describe_error(full, url).count("free some space") == 1

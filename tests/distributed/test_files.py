"""Paths in URLs: what is written is the path; what keeps a file from being used is said."""

import os
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from optuna_robustloss.distributed import databases, files
from optuna_robustloss.distributed import storage as storages
from optuna_robustloss.distributed.files import is_in_memory, split_sqlite_url
from optuna_robustloss.distributed.retrying_storage import RetryingStorage
from optuna_robustloss.distributed.storage import open_storage
from optuna_robustloss.distributed.trial_io import database_of

NAMES = [
    *("a%20b.db", "a%3Fb.db", "100%.db", "what?.db", "?", "a#1.db", "sp ace.db", "{x}.db", "é.db"),
    *("a@b:c.db", "a?foo=1", "q?timeout=1x?.db", "?timeout=", "-x", "x;y&z=1", "a+b", "%", "#"),
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def study_names(url, **options):
    storage = open_storage(url, **options)
    names = optuna.get_all_study_names(storage)
    if database := database_of(storage):
        database.engine.dispose()
    return names


@pytest.mark.parametrize("scheme", ["sqlite:///", "journal:"])
@pytest.mark.parametrize("name", ["a%20b?#{x}.db", "~/é@b:c"])
def test_what_is_written_is_the_path(here, monkeypatch, scheme, name):
    """In relative and absolute paths; only ``~/`` is replaced."""
    (here / "home").mkdir()
    monkeypatch.setenv("HOME", str(here / "home"))
    path = Path(name.replace("~", str(here / "home")))
    url = scheme + name
    optuna.create_study(storage=open_storage(url, create=True), study_name="s")
    assert path.is_file()
    assert study_names(url) == ["s"]
    assert study_names(scheme + str(path.absolute())) == ["s"]


def test_a_relative_database_does_not_move_with_the_process(here, monkeypatch):
    storage = open_storage("sqlite:///s.db", create=True)
    database_of(storage).engine.dispose()
    monkeypatch.chdir("/")
    optuna.create_study(storage=storage, study_name="s")
    assert study_names(f"sqlite:///{here}/s.db") == ["s"]


@pytest.mark.parametrize("version", ["2.0", "2.1"])
def test_sqlalchemy_reads_the_same_path(here, monkeypatch, version):
    """Version 2.0 does not decode a path; where it has a question mark, SQLite decodes it."""
    decodes = files.make_url("sqlite:///%41").database == "A"
    if version == "2.1" and not decodes:
        pytest.skip("this SQLAlchemy does not decode paths")
    if version == "2.0" and decodes:
        monkeypatch.setattr(files, "make_url", lambda _: SimpleNamespace(database="%41"))
    for name in NAMES:
        url = files.sqlalchemy_url("sqlite:///", name, "?timeout=3")
        if decodes and version == "2.1":
            assert files.make_url(url).database == name
        elif name != "?" and "?" in name:
            assert url == f"sqlite:///file:{files.quote(os.path.abspath(name))}?timeout=3&uri=true"
        elif "?" not in name:
            assert url == f"sqlite:///{name}?timeout=3"


@pytest.mark.parametrize(
    ("url", "path", "options"),
    [
        ("sqlite:///s.db?timeout=9", "s.db", "?timeout=9"),
        (
            "sqlite:////a/s.db?timeout=9&isolation_level=x",
            "/a/s.db",
            "?timeout=9&isolation_level=x",
        ),
        ("sqlite+pysqlite:///s?.db?uri=true", "s?.db", "?uri=true"),
        ("sqlite:///s.db?timeout", "s.db?timeout", ""),
        ("sqlite:///s.db?x=1&timeout=2", "s.db?x=1&timeout=2", ""),
    ],
)
def test_options_of_sqlite_are_not_the_path(url, path, options):
    assert split_sqlite_url(url)[1:] == (path, options)


def test_the_urls_own_time_limit_has_precedence(here):
    url = "sqlite:///s.db?timeout=0.5"
    engine = database_of(open_storage(url, create=True)).engine
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 500
    with pytest.raises(ValueError, match=r"s\.db\?timeout=soon' is not a storage URL"):
        open_storage("sqlite:///s.db?timeout=soon")


def test_which_databases_are_in_memory():
    for url in (
        *("sqlite://", "sqlite:///", "sqlite:///:memory:", "SQLite:///:memory:", "sqlite:"),
        *("sqlite+pysqlite://", "sqlite:///?timeout=9", "sqlite:///file::memory:?uri=true"),
        "sqlite:///file:x?mode=memory&uri=true",
    ):
        assert is_in_memory(url), url
    for url in (
        *("sqlite:///a:memory:b.db", "sqlite:////tmp/:memory:", "journal::memory:", "grpc://x"),
        "postgresql+psycopg://h/:memory:",
    ):
        assert not is_in_memory(url), url


@pytest.mark.parametrize("scheme", ["sqlite:///", "journal:"])
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("folder", "it is a folder: name a file in it"),
        ("fifo", "it is not a regular file"),
        ("no/such/s.db", r"there is no folder '.*/no/such': make it first"),
        ("text/s.db", r"there is no folder '.*/text': make it first"),
        ("x" * 300, "File name too long"),
        ("text", "(file is not a database|it is not a journal of Optuna)"),
        ("a\0b", "null (byte|character)"),
    ],
)
def test_what_keeps_a_file_from_being_used(here, scheme, path, message):
    (here / "folder").mkdir()
    (here / "text").write_text("task: digits")
    os.mkfifo(here / "fifo")
    with pytest.raises(ValueError, match=rf"^cannot open the storage '{scheme}.*: .*{message}"):
        open_storage(scheme + path, create=True)
    assert (here / "text").read_text() == "task: digits"
    assert sorted(os.listdir()) == ["fifo", "folder", "text"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_a_file_without_permission(here):
    open_storage("sqlite:///s.db", create=True)
    Path("s.db").chmod(0)
    with pytest.raises(ValueError, match=r"s\.db': permission to read it is denied"):
        open_storage("sqlite:///s.db")
    Path("closed").mkdir(0o500)
    with pytest.raises(ValueError, match=r"the folder .* is read-only"):
        open_storage("sqlite:///closed/s.db", create=True)


def test_an_empty_file_is_a_database_without_studies(here):
    Path("s.db").touch()
    assert study_names("sqlite:///s.db") == []


# Any text is either opened as what it says, or refused in one line that names it.

TEXT = st.text(
    st.one_of(
        st.sampled_from("%?#&=:/@~{}[] ;'\"\\\n\0é\udcff."),
        st.characters(min_codepoint=97, max_codepoint=104),
    ),
    max_size=30,
)
SCHEMES = st.sampled_from(
    [
        *(
            "sqlite:///",
            "sqlite://",
            "sqlite:",
            "SQLITE:///",
            "sqlite+pysqlite:///",
            "sqlite+x:///",
        ),
        *("journal:", "journal://", "Journal:///", "grpc://", "redis://", "http://", "", "file:"),
        *("postgresql+psycopg://u:hunter2-secret@127.0.0.1:1/", "postgresql+psycopg://[::1]:1/"),
        *("mysql+pymysql://u:hunter2-secret@", "oracle://u:hunter2-secret@", "mysql://"),
    ]
)


class Tableless:
    """In place of Optuna's database, whose tables take half a second: the same engine and file."""

    def __init__(self, template, options):
        self.engine = sa.create_engine(template.replace("{{", "{").replace("}}", "}"), **options)
        with self.engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE IF NOT EXISTS t (x)"))
        self.engine.dispose()


def check_any_url(url, folder):
    """Open a URL in a folder of its own."""
    folder.mkdir()
    os.chdir(folder)  # the fixture changes back
    try:
        storage = open_storage(url, create=True)
        if not is_in_memory(url):
            open_storage(url)  # finds what it made
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
        assert "\n" not in message
        assert len(message) < 1200
        assert "hunter2" not in message
        return
    scheme, _, rest = url.partition(":")
    path = (split_sqlite_url(f"{scheme.lower()}:{rest}") or ("", "", ""))[1]
    if isinstance(storage, RetryingStorage) and not path.startswith("file:"):
        assert is_in_memory(url) or Path(os.path.expanduser(path)).is_file()


def fuzz(examples):
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=examples, deadline=None, suppress_health_check=checks)


@fuzz(300)
@given(scheme=SCHEMES, rest=TEXT)
@example(scheme="postgresql+psycopg://u:hunter2-secret@127.0.0.1:1/", rest="d?a b")
@example(scheme="sqlite:///", rest="a?timeout=1")
@example(scheme="sqlite:///", rest="x" * 100_000)
@example(scheme="", rest="x" * 100_000)
def test_any_url_is_opened_or_refused_in_one_line(quick, scheme, rest):
    check_any_url(scheme + rest, quick / f"f{len(os.listdir(quick))}")


@pytest.mark.slow
@fuzz(5000)
@given(scheme=SCHEMES, rest=TEXT)
def test_thousands_of_urls(quick, scheme, rest):
    check_any_url(scheme + rest, quick / f"f{len(os.listdir(quick))}")


@pytest.fixture
def quick(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    monkeypatch.setattr(databases, "TolerantRDBStorage", Tableless)
    monkeypatch.setattr(storages, "_GRPC_TIMEOUT", 0.01)
    return here

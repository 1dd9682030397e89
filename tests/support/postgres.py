"""A real PostgreSQL server for tests, in a folder that is removed after the tests."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import pytest

DEBIAN = Path("/usr/lib/postgresql")
PROGRAMS = ("initdb", "pg_ctl", "postgres")
USER = "study"

# Waits for a line, or for the end of the test process, however it ends; then clears up.
GUARDIAN = 'directory=$1; shift; read -r _; "$@" >/dev/null 2>&1; rm -rf -- "$directory"'


def binaries() -> Path | None:
    """Folder of the server's programs: $PG_BIN, or Debian's newest version, or from PATH."""
    if chosen := os.environ.get("PG_BIN"):
        folders = [Path(chosen)]
    else:
        debian = [p for p in DEBIAN.glob("*/bin") if p.parent.name.isdigit()]
        folders = sorted(debian, key=lambda path: int(path.parent.name), reverse=True)
        folders += [Path(found).resolve().parent for found in [shutil.which("pg_ctl")] if found]
    complete = (path for path in folders if all((path / name).exists() for name in PROGRAMS))
    return next(complete, None)


def skip_reason() -> str | None:
    """Why no server can be used here, or None."""
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        return f"psycopg cannot be imported: pip install 'psycopg[binary]' ({error})"
    if binaries() is None:
        return "no PostgreSQL server: apt-get install postgresql, or set PG_BIN to its programs"
    if os.geteuid() == 0 and _unprivileged() is None:
        return "PostgreSQL refuses to run as root, and there is no account postgres or nobody"
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        return "PostgreSQL refuses to run as root: apt-get install util-linux for setpriv"
    return None


class PostgresServer:
    """A server on a free port, with a password that has to be quoted in a URL::

        with PostgresServer() as server:
            storage = RDBStorage(server.create_database("digits"))

    `listen` are the addresses ("*" for all), `allow` the CIDRs that may log in besides this
    machine, `settings` lines of postgresql.conf. `prefix` is put before the command that starts the
    server, to start it in a network namespace; `local_url` reaches it from outside of that.
    """

    def __init__(
        self,
        *,
        listen: str | Sequence[str] = "127.0.0.1",
        allow: Sequence[str] = (),
        prefix: Sequence[str] = (),
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.listen = [listen] if isinstance(listen, str) else list(listen)
        self.allow = list(allow)
        self.prefix = list(prefix)
        self.settings = dict(settings or {})
        self.password = secrets.token_hex(8) + "@%:/ +#?'\"\\%40"
        self.port = 0
        self.directory: Path | None = None
        self._guardian: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process that all others of the server descend from."""
        return int((self._data / "postmaster.pid").read_text().splitlines()[0])

    def start(self) -> None:
        """Start and return when connections are accepted; the first time, set up the data."""
        if self.directory is None:
            self._create()
        log = self._folder / "log"
        try:
            self._run("pg_ctl", "start", "-w", "-s", "-l", str(log), prefix=self.prefix)
        except RuntimeError as error:
            raise RuntimeError(f"{error}\n{log.read_text() if log.exists() else ''}") from None

    def stop(self, mode: str = "fast") -> None:
        """Stop, and return when it has; "immediate" is a crash, recovered from at the start."""
        self._run("pg_ctl", "stop", "-w", "-s", "-m", mode)

    def restart(self, mode: str = "fast") -> None:
        """Stop and start on the same port with the same data."""
        self.stop(mode)
        self.start()

    def close(self) -> None:
        """Stop, if running, and remove the folder."""
        if self._guardian is not None:
            # A line, since a forked child of the tests may keep the pipe from ending.
            self._guardian.communicate(b"\n")
        self._guardian = self.directory = None

    def create_database(self, name: str) -> str:
        """Create an empty database and return its URL."""
        self._execute("CREATE DATABASE {}", name)
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, with the connections to it."""
        self._execute("DROP DATABASE {} WITH (FORCE)", name)

    def url(self, name: str, host: str | None = None) -> str:
        """SQLAlchemy URL of a database at `host`, by default the first address of `listen`."""
        if host is None:
            host = "127.0.0.1" if self.listen[0] == "*" else self.listen[0]
        return self._url(f"{f'[{host}]' if ':' in host else host}:{self.port}/{quote(name, '')}")

    def local_url(self, name: str) -> str:
        """SQLAlchemy URL through the Unix socket, which works across network namespaces."""
        return self._url(f"/{quote(name, '')}?host={self._folder}&port={self.port}")

    def __enter__(self) -> PostgresServer:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def _folder(self) -> Path:
        if self.directory is None:
            raise RuntimeError("this server was never started, or is closed")
        return self.directory

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _create(self) -> None:
        # Not in pytest's tmp_path: only its owner can enter that, and the path of a socket is
        # limited to 107 characters.
        self.directory = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
        stop = self._command("pg_ctl", "stop", "-w", "-m", "immediate")
        self._guardian = subprocess.Popen(
            ["sh", "-c", GUARDIAN, "sh", self.directory, *stop],
            stdin=subprocess.PIPE,
            env=_environment(),
            cwd="/",
            start_new_session=True,  # Ctrl-C is for the tests, which then let go of the pipe
        )
        self.port = _free_port()
        password = self.directory / "password"
        password.write_text(self.password + "\n")
        if account := _unprivileged():
            os.chown(self.directory, account.pw_uid, account.pw_gid)
            os.chown(password, account.pw_uid, account.pw_gid)
        self._run(
            *("initdb", f"--username={USER}", f"--pwfile={password}", "--auth=scram-sha-256"),
            *("--no-locale", "--encoding=UTF8", "--no-sync"),
        )
        settings = {
            "listen_addresses": ",".join(self.listen),
            "port": str(self.port),
            "unix_socket_directories": str(self.directory),
            "max_connections": "200",
            # Without fsync only a crash of the machine loses data, not one of the server.
            # synchronous_commit stays on: without it stop("immediate") would lose commits.
            "fsync": "off",
            **self.settings,
        }
        with (self._data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
        with (self._data / "pg_hba.conf").open("a") as file:
            file.writelines(f"host all all {cidr} scram-sha-256\n" for cidr in self.allow)

    def _command(self, program: str, *arguments: str) -> list[str]:
        folder = binaries()
        if folder is None:
            raise RuntimeError(skip_reason())
        command = [str(folder / program), "-D", str(self._data), *arguments]
        if account := _unprivileged():
            ids = f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"
            return ["setpriv", *ids, "--", *command]
        return command

    def _run(self, program: str, *arguments: str, prefix: Sequence[str] = ()) -> None:
        command = [*prefix, *self._command(program, *arguments)]
        done = subprocess.run(
            command, env=_environment(), cwd=self._folder, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")

    def _execute(self, statement: str, name: str) -> None:
        import psycopg
        from psycopg import sql

        with psycopg.connect(
            host=str(self._folder),
            port=self.port,
            user=USER,
            password=self.password,
            dbname="postgres",
            autocommit=True,
        ) as connection:
            connection.execute(sql.SQL(statement).format(sql.Identifier(name)))

    def _url(self, place: str) -> str:
        # Not SQLAlchemy's URL.render_as_string: it leaves spaces, which libpq refuses.
        return f"postgresql+psycopg://{USER}:{quote(self.password, '')}@{place}"


def _unprivileged() -> pwd.struct_passwd | None:
    """The account to run as in place of root; None if not root, or if there is none."""
    if os.geteuid() != 0:
        return None
    accounts = {entry.pw_name: entry for entry in pwd.getpwall()}
    return accounts.get("postgres") or accounts.get("nobody")


def _environment() -> dict[str, str]:
    """The environment without what would redirect the server's programs, PGDATA for example."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


def _free_port() -> int:
    """A port that is free, and below those given to clients: no other takes it in a restart."""
    while True:
        port = 20000 + secrets.randbelow(10000)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        return port


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for all tests, which must leave it running; import it in a conftest.py."""
    if reason := skip_reason():
        pytest.skip(reason)
    with PostgresServer() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """URL of a fresh database."""
    name = f"test_{secrets.token_hex(6)}"
    yield postgres_server.create_database(name)
    postgres_server.drop_database(name)

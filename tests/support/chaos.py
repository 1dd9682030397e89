"""Workers that die: real processes of the real loop, with a cheap objective and a fate each.

Run as a script this is a zygote: it imports everything once and forks a worker on
request, so that a worker starts in milliseconds. `Zygote` is its other end, in the tests.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import random
import runpy
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna_robustloss.distributed import lease
from optuna_robustloss.distributed.storage import open_storage
from optuna_robustloss.search.objective import NoisyLabelObjective
from optuna_robustloss.search.study import attach_spec, open_study
from optuna_robustloss.search.worker import run_worker
from optuna_robustloss.training.scoring import LossScore, Score

STUDIES = Path(__file__).parents[2] / "studies"


@dataclass
class Fate:
    """A process sends itself a signal at the n-th event of a kind.

    Kinds: "asked" (an evaluation begins), "done" (it ends, and is not told), "sql" (before and
    after each statement, and after each commit), "lock" (it has just locked the study's row).
    """

    kind: str = ""
    n: int = 0
    signal: int = signal.SIGKILL
    _seen: Counter[str] = field(default_factory=Counter)

    def tick(self, kind: str) -> None:
        """Count an event; the last thing some processes do."""
        self._seen[kind] += 1
        if kind == self.kind and self._seen[kind] == self.n:
            logging.info("fate: signal %d at %s %d", self.signal, kind, self.n)
            os.kill(os.getpid(), self.signal)

    def watch_sql(self) -> None:
        """Count what this process does with databases."""
        from sqlalchemy import Engine, event
        from sqlalchemy.engine.default import DefaultDialect

        for name in ("before_cursor_execute", "after_cursor_execute"):
            event.listen(Engine, name, lambda *_: self.tick("sql"))
        commit = DefaultDialect.do_commit

        def committed(dialect: DefaultDialect, connection: Any) -> None:
            commit(dialect, connection)
            self.tick("sql")

        def locked(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
            if "FOR UPDATE" in statement and "studies" in statement:
                self.tick("lock")

        event.listen(Engine, "after_cursor_execute", locked)
        DefaultDialect.do_commit = committed  # type: ignore[method-assign]


class CheapObjective(NoisyLabelObjective):
    """All of the real objective but the training: the accuracy is a function of loss and seed."""

    def __init__(self, spec: Any, pause: Sequence[float] = (0, 0), fate: Fate | None = None):
        super().__init__(spec, device="cpu")
        self.pause, self.fate = pause, fate or Fate()

    def tasks(self, seed: int) -> list[Any]:
        """Nothing to load."""
        return []

    def scores(
        self, losses: Any, seed: int, *, reports: Any = None, stop_early: bool = False
    ) -> list[LossScore]:
        """Take a while, and return what the parameters deserve, with noise from the seed."""
        (task,) = self.spec.tasks
        results = []
        for parameters, report in zip(losses, reports, strict=True):
            logging.info("evaluates trial %d", report.args[0].number)
            self.fate.tick("asked")
            try:
                for step in range(3):
                    time.sleep(random.uniform(*self.pause) / 3)
                    report(step, step / 3)
            except Exception as error:
                results.append(LossScore({}, error=error))
                continue
            self.fate.tick("done")
            distance = sum((x - 0.3 * i) ** 2 for i, x in enumerate(parameters.theta))
            digest = hashlib.sha256(repr((seed, parameters.theta)).encode()).digest()
            noise = int.from_bytes(digest[:4], "big") / 2**32
            score = Score(1 / (1 + distance) + 0.01 * noise, 0.0, False, False, ())
            results.append(LossScore({task: score}))
        return results


# In a forked worker


def work(order: dict[str, Any]) -> None:
    """Be a worker, as `optuna-robustloss work` is one."""
    fate = Fate(*order.get("fate", ()))
    fate.watch_sql()
    if host := order.get("host"):  # others cannot look for our process
        lease.machine = lambda: host
    storage = open_storage(order["url"], patience=order.get("patience", 60))
    study = open_study(storage, order["study"], lease=order["lease"])
    pause = order.get("pause", (0, 0))
    objective = CheapObjective(attach_spec(study, None), pause, fate)
    run_worker(study, objective, lease=order["lease"], candidates=order.get("candidates", 1))


def script(order: dict[str, Any]) -> None:
    """Run a Python file of the studies folder, all such workers at one moment."""
    sys.argv = order["argv"]
    time.sleep(max(0.0, order["at"] - time.time()))
    runpy.run_path(str(STUDIES / sys.argv[0]), run_name="__main__")


def proxy(order: dict[str, Any]) -> None:
    """Be Optuna's gRPC proxy for a storage."""
    from optuna.storages import run_grpc_proxy_server

    storage = open_storage(order["url"])
    run_grpc_proxy_server(storage, host="127.0.0.1", port=order["port"])


def _child(order: dict[str, Any]) -> None:
    code = 1
    try:
        log = os.open(order["log"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        logging.basicConfig(
            level=logging.INFO, force=True, format="%(relativeCreated)d %(message)s"
        )
        random.seed(order.get("seed"))
        target: Callable[[dict[str, Any]], None] = globals()[order["run"]]
        target(order)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# The zygote


def _zygote() -> None:
    children: dict[int, int] = {}
    pids: dict[int, int] = {}
    rest = b""
    print(json.dumps({"ready": True}), flush=True)
    while True:
        if select.select([0], [], [], 0.02)[0]:
            data = os.read(0, 65536)
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for order in map(json.loads, lines):
                if "signal" in order:
                    with suppress(KeyError):
                        os.kill(pids[order["id"]], order["signal"])
                elif pid := os.fork():
                    children[pid], pids[order["id"]] = order["id"], pid
                    print(json.dumps({"id": order["id"], "pid": pid}), flush=True)
                else:
                    _child(order)
        while children:
            pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            if pid == 0:
                break
            if os.WIFSTOPPED(status):
                print(json.dumps({"id": children[pid], "stopped": True}), flush=True)
            else:
                number = children.pop(pid)
                del pids[number]
                code = os.waitstatus_to_exitcode(status)
                print(json.dumps({"id": number, "code": code}), flush=True)
    for pid in children:
        os.kill(pid, signal.SIGKILL)


# In the tests


@dataclass
class Worker:
    """A process of a zygote."""

    zygote: Zygote
    number: int
    path: Path
    pid: int = 0
    code: int | None = None
    stopped: bool = False

    def send(self, number: int) -> None:
        """Send a signal, if the process still exists."""
        self.stopped = False
        self.zygote.pass_on({"id": self.number, "signal": int(number)})

    def log(self) -> str:
        """What it has written to stdout and stderr."""
        return self.path.read_text(errors="replace") if self.path.exists() else ""


class Zygote:
    """Forks workers, on another host if `prefix` says so; kills them when it is closed."""

    def __init__(self, folder: Path, prefix: Sequence[str] = ()) -> None:
        self._folder = folder
        self._numbers = itertools.count()
        self.workers: dict[int, Worker] = {}
        self._process = subprocess.Popen(
            [*prefix, sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def start(self, run: str, **order: Any) -> Worker:
        """Fork a process that calls a function of this file with an order."""
        number = next(self._numbers)
        worker = Worker(self, number, self._folder / f"{id(self):x}-{number}.log")
        self.workers[number] = worker
        self.pass_on({"id": number, "run": run, "log": str(worker.path), **order})
        return worker

    def pass_on(self, message: dict[str, Any]) -> None:
        """Pass on an order or a signal."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """Kill all workers and end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._reader.join()

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            if "id" in message:
                worker = self.workers[message.pop("id")]
                for name, value in message.items():
                    setattr(worker, name, value)


if __name__ == "__main__":
    _zygote()

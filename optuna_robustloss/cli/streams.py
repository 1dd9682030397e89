"""Standard output and error that do not interrupt work, and the end of the process."""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import Any, NoReturn, TextIO


class _Descriptor(io.FileIO):
    """A file descriptor that keeps its first error of writing and drops what follows."""

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            if self.failure is None:
                return super().write(data)
        except OSError as error:
            self.failure = error
        return memoryview(data).nbytes


def guard_streams() -> None:
    """Make ``sys.stdout`` and ``sys.stderr`` outlive a full disk and a reader that has ended.

    Characters that their encoding lacks are replaced. A closed stream writes to nothing.
    """
    sys.stdout = _guarded(sys.stdout, 1, "replace")
    sys.stderr = _guarded(sys.stderr, 2, "backslashreplace")


def _guarded(stream: TextIO | None, descriptor: int, errors: str) -> TextIO:
    if stream is None:  # the descriptor is closed, and may become that of another file
        return open(os.devnull, "w", encoding="utf-8")
    raw = io.BufferedWriter(_Descriptor(descriptor, "w", closefd=False))
    return io.TextIOWrapper(raw, encoding=stream.encoding, errors=errors, line_buffering=True)


def exit_process(code: int) -> NoReturn:
    """End the process at once: tearing down PyTorch takes seconds, and threads are not waited for.

    Args:
        code: exit status; if 0, 141 where the reader of the output has ended, as that of a shell's
            tools is, and 1 where the output could not be written.

    """
    logging.shutdown()
    if "multiprocessing" in sys.modules:
        import multiprocessing

        for process in multiprocessing.active_children():  # such as those that load images
            process.kill()
    sys.stdout.flush()
    buffer: Any = sys.stdout.buffer
    failure = getattr(buffer.raw, "failure", None)
    if isinstance(failure, BrokenPipeError):
        code = code or 141
    elif failure is not None:
        code = code or 1
        print(f"error: cannot write the output: {failure.strerror}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(code)

"""Waiting for what other threads, processes and servers do."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: Seconds after which a test fails rather than hangs: far more than a slow machine needs.
LIMIT = 600.0


def wait_until(condition: Callable[[], T], interval: float = 0.05) -> T:
    """Return the first true value of ``condition()``; an AssertionError after ``LIMIT`` seconds."""
    end = time.monotonic() + LIMIT
    while not (value := condition()):
        assert time.monotonic() < end, f"{condition} is still false after {LIMIT:.0f} s"
        time.sleep(interval)
    return value

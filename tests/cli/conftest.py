import logging
import signal
import warnings
from pathlib import Path

import optuna
import pytest
import yaml

from cli.commands import SPEC


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """Commands run in an empty folder, and leave this process as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    handler, verbosity = signal.getsignal(signal.SIGTERM), optuna.logging.get_verbosity()
    logger = logging.getLogger("optuna.study._optimize")
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    with warnings.catch_warnings():
        yield
    logging.lastResort.setFormatter(None)
    optuna.logging.enable_default_handler()
    optuna.logging.disable_propagation()
    signal.signal(signal.SIGTERM, handler)
    optuna.logging.set_verbosity(verbosity)
    logger.filters.clear()


@pytest.fixture
def spec():
    Path("small.yaml").write_text(yaml.safe_dump(SPEC))
    return "small.yaml"


@pytest.fixture
def database(tmp_path):
    """Where several commands find the same study."""
    return f"sqlite:///{tmp_path}/shared.db"

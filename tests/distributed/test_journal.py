"""Journals after full disks and killed writers: torn lines are cut, damaged ones named."""

import json
import os
import resource
import threading

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from support.waiting import wait_until

from optuna_robustloss.distributed.storage import open_storage


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "search.log"
    optuna.create_study(storage=open_storage(f"journal:{path}", create=True), study_name="s")
    return path


def load(path):
    return optuna.load_study(storage=open_storage(str(path)), study_name="s")


def add_trial(study):
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    study.tell(trial, 1.0)


def check_lines(path):
    """All lines are whole, also for Optuna's own reader."""
    content = path.read_bytes()
    assert content.endswith(b"\n")
    assert all(json.loads(line)["op_code"] >= 0 for line in content.splitlines())
    return len(JournalStorage(JournalFileBackend(str(path))).get_all_trials(0))


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_a_torn_last_line_is_cut_by_the_next_writer(path, cut):
    """Also where other processes have the journal open, and have read up to that line."""
    study, reader = load(path), load(path)
    add_trial(study)
    assert len(reader.trials) == 1
    study.ask()
    os.truncate(path, path.stat().st_size - cut)
    assert len(load(path).trials) == len(reader.trials) == 1  # the second is not there
    add_trial(load(path))
    assert len(reader.trials) == len(load(path).trials) == 2
    assert [trial.value for trial in reader.trials] == [1.0, 1.0]
    assert check_lines(path) == 2


def test_a_torn_line_longer_than_a_block_is_cut(path):
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code":2,"user_attr":"' + b"x" * 20_000)
    load(path).set_user_attr("a", 1)
    assert path.read_bytes().startswith(whole + b'{"op_code":2,"worker_id"')
    assert load(path).user_attrs == {"a": 1}


def test_a_journal_with_nothing_but_a_torn_line_is_empty(tmp_path):
    path = tmp_path / "search.log"
    path.write_bytes(b'{"op_code":0,"work')
    assert optuna.get_all_study_names(open_storage(f"journal:{path}")) == []
    optuna.create_study(storage=open_storage(f"journal:{path}"), study_name="s")
    assert load(path).trials == []


def test_the_writer_whose_disk_is_full_leaves_no_torn_line(path):
    study = load(path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)  # Python ignores the signal
    before = path.read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 60, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*search\.log'"):
            study.set_user_attr("a", "x" * 100)
        assert path.read_bytes() == before
        assert not path.with_name("search.log.lock").exists()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    study.set_user_attr("a", 1)
    assert load(path).user_attrs == {"a": 1}


def test_a_torn_line_is_cut_under_the_lock(path):
    """While another process holds the lock, its line may be half written."""
    study = load(path)
    whole = path.read_bytes()
    lock = path.with_name("search.log.lock")
    lock.touch()
    path.write_bytes(whole + b'{"op_code":2')
    writer = threading.Thread(target=study.set_user_attr, args=("a", 1))
    writer.start()
    writer.join(0.2)
    assert writer.is_alive()
    assert path.read_bytes() == whole + b'{"op_code":2'
    path.write_bytes(whole)
    lock.unlink()
    wait_until(lambda: not writer.is_alive())
    assert load(path).user_attrs == {"a": 1}


@pytest.mark.parametrize(
    "damage",
    [b'{"op_code":5,"work{"op_code":4}', b"\0\0\0\0", b"\xff\xfe", b"[1]", b'{"op_code":77}', b"7"],
)
def test_a_damaged_line_is_named(path, damage):
    """As two writers of Optuna leave it; without that line the journal can be read again."""
    add_trial(load(path))
    study = load(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines, damage + b"\n", lines[1]]))
    message = rf"search\.log' is damaged in line {len(lines) + 1} .*delete that line"
    with pytest.raises(ValueError, match=message):
        load(path)
    if damage[:1] not in b"[7" and b"77" not in damage:  # JSON fails in Optuna's own replay
        with pytest.raises(ValueError, match=message):
            study.get_trials()
    path.write_bytes(b"".join([*lines, lines[1]]))
    assert len(load(path).trials) == 2


@pytest.mark.parametrize("content", [b"7", b"no newline", b"{}", b'{"theta": [0.1, 0.2]}'])
def test_another_file_is_not_cut(tmp_path, content):
    path = tmp_path / "loss.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="it is not a journal of Optuna"):
        open_storage(f"journal:{path}", create=True)
    assert path.read_bytes() == content

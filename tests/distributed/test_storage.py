"""Storages by their URL: what cannot be opened, and what a message never shows."""

import pytest

from optuna_robustloss.distributed.storage import open_storage


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("study.db", "is not a storage URL: use for example sqlite:///"),
        (
            "sqlite:///no/such/folder/study.db",
            "cannot open the storage .*there is no folder '/",
        ),
        (f"sqlite:///{__file__}", "cannot open the storage .*not a database"),
        ("oracel://user:secret@host/db", "is not a storage URL"),
        ("postgresql+pg8000://user:secret@host/db", "driver for .*pg8000.*is not installed"),
        ("postgresql+pg8000://user:se@cret@host/db", "driver for .*is not installed"),
        ("postgresql://user:secret@host:port/db", "is not a storage URL"),
        ("postgresql//user:secret@host/db", "is not a storage URL"),
        ("oracel://host/db?user=me&password=secret", "is not a storage URL"),
    ],
)
def test_a_wrong_storage_is_one_message_without_the_password(storage, message):
    with pytest.raises(ValueError, match=message) as error:
        open_storage(storage, create=True)
    assert "cret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_mistyped_database_is_not_created(tmp_path):
    path = tmp_path / "typo.db"
    with pytest.raises(FileNotFoundError, match=r"there is no database .*typo\.db"):
        open_storage(f"sqlite:///{path}")
    assert not path.exists()

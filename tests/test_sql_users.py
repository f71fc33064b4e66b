"""The users file of the SQL server."""

import stat
from pathlib import Path

import pytest

from cxr_spark import sql_users
from cxr_spark.sql_users import InvalidUsers


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A users file with ann and bob in it."""
    path = tmp_path / "users"
    sql_users.add(path, "bob", "bob's password")
    sql_users.add(path, "ann", "ann's password")
    return path


def test_a_user_gets_in_with_the_own_password_and_with_no_other(file: Path) -> None:
    users = sql_users.read(file)
    assert sql_users.admits(users, "ann", "ann's password")
    assert not sql_users.admits(users, "ann", "bob's password")
    assert not sql_users.admits(users, "ann", "")
    assert not sql_users.admits(users, "eve", "ann's password")


def test_the_file_is_for_its_owner_alone_and_holds_no_password(file: Path) -> None:
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "password" not in file.read_text()
    assert [path.name for path in file.parent.iterdir()] == ["users"]


def test_the_same_password_has_another_hash_each_time(file: Path) -> None:
    sql_users.add(file, "eve", "ann's password")
    users = sql_users.read(file)
    assert users["eve"] != users["ann"]


def test_adding_a_user_again_changes_the_password_and_keeps_the_others(file: Path) -> None:
    sql_users.add(file, "ann", "another password")
    users = sql_users.read(file)
    assert list(users) == ["ann", "bob"]
    assert sql_users.admits(users, "ann", "another password")
    assert not sql_users.admits(users, "ann", "ann's password")


@pytest.mark.parametrize("name", ["", "a:b", "a\nb", "-a", "a" * 65, "ä"])
def test_a_name_that_would_break_the_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidUsers, match="a name has letters"):
        sql_users.add(tmp_path / "users", name, "long enough")


@pytest.mark.parametrize("password", ["", "short", "long enough\0", "x" * 1025])
def test_a_password_that_is_too_short_too_long_or_has_a_nul_is_refused(
    tmp_path: Path, password: str
) -> None:
    with pytest.raises(InvalidUsers, match="a password has 8"):
        sql_users.add(tmp_path / "users", "ann", password)


def test_a_file_that_others_may_read_is_refused(file: Path) -> None:
    file.chmod(0o640)
    with pytest.raises(InvalidUsers, match="others may read it"):
        sql_users.read(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no users"),
        ("ann:secret\n", "line 1"),
        ("ann:scrypt$AA==$AA==\n\n", "line 2"),
        ("ann:md5$AA==$AA==\n", "line 1"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "users"
    path.touch(mode=0o600)
    path.write_text(text)
    with pytest.raises(InvalidUsers, match=message):
        sql_users.read(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidUsers, match="make it with --add-user"):
        sql_users.read(tmp_path / "users")

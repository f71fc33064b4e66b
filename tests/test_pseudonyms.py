"""Patients' ids become salted hashes, and the salt is made once, kept and checked."""

import hashlib
import os
import stat
from pathlib import Path

import pytest

from cxr_spark import pseudonyms
from cxr_spark.pseudonyms import SaltError, find_salt, keep_salt, pseudonym, salt_id

SALT = b"0123456789abcdef0123456789abcdef"


def hmac_sha256(key: bytes, text: bytes) -> str:
    """RFC 2104 by hand, for keys of at most 64 bytes."""
    block = key.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block) + text).digest()
    return hashlib.sha256(bytes(byte ^ 0x5C for byte in block) + inner).hexdigest()


def test_a_pseudonym_is_the_hmac_of_the_id_under_the_salt() -> None:
    assert pseudonym("Müller-12", SALT) == hmac_sha256(SALT, "Müller-12".encode())


def test_a_patient_keeps_the_pseudonym_and_no_two_share_one() -> None:
    ids = [str(number) for number in range(1000)] + ["012", "12a"]
    assert len({pseudonym(patient, SALT) for patient in ids}) == len(ids)
    assert pseudonym(" 12\n", SALT) == pseudonym("12", SALT)


def test_another_salt_gives_another_pseudonym() -> None:
    assert pseudonym("12", SALT) != pseudonym("12", SALT[::-1])


def test_a_salt_is_told_from_another_without_being_told() -> None:
    assert salt_id(SALT) == salt_id(SALT) != salt_id(SALT[::-1])
    assert salt_id(SALT) not in (SALT.hex(), pseudonym("salt id", SALT))


def test_an_unknown_patient_has_no_pseudonym() -> None:
    with pytest.raises(AssertionError, match="all would be one"):
        pseudonym(" ", SALT)


def test_a_salt_is_kept_for_its_owner_alone_and_found_again(tmp_path: Path) -> None:
    place = tmp_path / "keys/salt"
    salt = find_salt(place)
    assert not place.parent.exists()
    keep_salt(place, salt)
    keep_salt(place, salt)
    assert (len(salt), salt) == (2 * pseudonyms.SALT_BYTES, find_salt(place))
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert list(place.parent.iterdir()) == [place]


def test_two_salts_are_never_the_same(tmp_path: Path) -> None:
    assert find_salt(tmp_path / "a") != find_salt(tmp_path / "a")


def test_a_salt_made_meanwhile_by_another_run_is_not_replaced(tmp_path: Path) -> None:
    place = tmp_path / "salt"
    salt = find_salt(place)
    place.write_bytes(SALT)
    with pytest.raises(SaltError, match="another run has made a salt"):
        keep_salt(place, salt)
    assert place.read_bytes() == SALT
    assert list(tmp_path.iterdir()) == [place]


def test_the_users_own_salt_is_taken_without_its_last_newline(tmp_path: Path) -> None:
    (tmp_path / "salt").write_bytes(SALT + b"\n")
    assert find_salt(tmp_path / "salt") == SALT


@pytest.mark.parametrize("content", [b"", b"\n" * 40, b"pepper\n", SALT[1:]])
def test_a_short_salt_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    place = tmp_path / "salt"
    place.write_bytes(content)
    with pytest.raises(SaltError, match=r"salt: \d+ bytes are no salt; at least 32 are needed"):
        find_salt(place)
    assert place.read_bytes() == content


def test_what_is_no_file_is_no_salt_and_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    for name in ("pipe", "gone", "."):
        with pytest.raises(SaltError, match="not a file"):
            find_salt(tmp_path / name)


def test_a_place_where_no_salt_can_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SaltError, match=r"file/salt: the salt can't be made: "):
        keep_salt(tmp_path / "file/salt", SALT)

"""Patient ids as salted hashes: the same patient gets the same one, and nobody can tell whose."""

import hashlib
import hmac
import os
import secrets
from contextlib import suppress
from pathlib import Path

SALT_BYTES = 32
# What programs write where they know nothing: as an id, it would make one patient of many.
_NOBODY = frozenset(
    ("", "nan", "none", "null", "n/a", "<na>", "unknown", "anonymous", "anonymized", "anonymised")
)


class SaltError(ValueError):
    """The salt file can't be used."""


def pseudonym(patient_id: str, salt: bytes) -> str:
    """Returns the HMAC-SHA-256 of a patient id under the salt, hex; space around the id is none."""
    assert patient_id.strip(), "an unknown patient has no pseudonym: all would be one"
    return hmac.new(salt, patient_id.strip().encode(), hashlib.sha256).hexdigest()


def pseudonym_if_known(text: str, salt: bytes) -> str | None:
    """Returns the pseudonym of a patient id; None where the text says that it isn't known."""
    return None if text.strip().lower() in _NOBODY else pseudonym(text, salt)


def salt_id(salt: bytes) -> str:
    """Returns what tells one salt from another, and nothing else of it."""
    return hmac.new(salt, b"salt id", hashlib.sha256).hexdigest()[:16]


def find_salt(path: str | os.PathLike[str]) -> bytes:
    """Returns the salt in the file, or where there is none, one newly drawn, which isn't kept yet.

    Whoever has the salt can test which patient is which: it is the user's to keep. Another salt
    gives other patients, so all copies of a warehouse need the same.

    Raises:
        SaltError: the file can't be read, or is too short to be a salt.
    """
    place = Path(path)
    if not os.path.lexists(place):
        return secrets.token_hex(SALT_BYTES).encode()
    if not place.is_file():
        raise SaltError(f"{place}: not a file; name another with --salt-file.")
    try:
        salt = place.read_bytes().strip()
    except OSError as error:
        raise SaltError(f"{place}: the salt can't be read: {error.strerror}") from error
    if len(salt) < SALT_BYTES:
        raise SaltError(
            f"{place}: {len(salt)} bytes are no salt; at least {SALT_BYTES} are needed. Name "
            "another with --salt-file, or a file that doesn't exist yet to have one made."
        )
    return salt


def keep_salt(path: str | os.PathLike[str], salt: bytes) -> None:
    """Writes the salt (mode 600), whole or not at all, unless it is there already.

    Raises:
        SaltError: the file can't be made, or another run has made one meanwhile.
    """
    place = Path(path)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(place):
            _make(place, salt)
    except OSError as error:
        raise SaltError(f"{place}: the salt can't be made: {error.strerror}") from error
    if find_salt(place) != salt:
        raise SaltError(f"{place}: another run has made a salt meanwhile; start again.")


def _make(place: Path, salt: bytes) -> None:
    draft = place.with_name(f".{place.name}-{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(salt + b"\n")
            file.flush()
            os.fsync(descriptor)  # tables made under a salt that is lost are no use
        with suppress(FileExistsError):  # made meanwhile: whether it's the same is asked later
            os.link(draft, place)
    finally:
        os.unlink(draft)

"""The users file of the SQL server: a name and the salted scrypt hash of a password a line."""

import base64
import hashlib
import hmac
import os
import re
import secrets
from contextlib import ExitStack
from pathlib import Path

from cxr_spark.whole_files import replaced

# A guess costs 16 MiB and about 50 ms; more would let a flood of guesses fill the memory.
COST = {"n": 1 << 14, "r": 8, "p": 1}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
PASSWORD_BYTES = 1024


class InvalidUsers(ValueError):
    """A users file, name or password that can't be used."""


def read(path: Path) -> dict[str, str]:
    """The hash of each user's password, by name.

    Raises:
        InvalidUsers: the file can't be read, others may read it, or a line is not of its form.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise InvalidUsers(f"{path}: others may read it; chmod 600 {path}")
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise InvalidUsers(f"{path}: {error.strerror}; make it with --add-user NAME") from error
    users = {}
    for number, line in enumerate(lines, 1):
        name, _, hashed = line.partition(":")
        if not NAME.fullmatch(name) or not re.fullmatch(r"scrypt(\$[A-Za-z0-9+/]+=*){2}", hashed):
            raise InvalidUsers(f"{path}, line {number}: expected NAME:scrypt$SALT$HASH")
        users[name] = hashed
    if not users:
        raise InvalidUsers(f"{path}: no users in it; add one with --add-user NAME")
    return users


def add(path: Path, name: str, password: str) -> None:
    """Add a user or change the password of one, in one atomic step; the file has mode 600.

    Raises:
        InvalidUsers: the file, name or password can't be used.
    """
    if not NAME.fullmatch(name):
        raise InvalidUsers(f"{name!r}: a name has letters, digits and . _ @ -, 64 at most")
    if not 8 <= len(password.encode()) <= PASSWORD_BYTES or "\0" in password:
        raise InvalidUsers(f"a password has 8 to {PASSWORD_BYTES} bytes and no NUL")
    users = (read(path) if path.exists() else {}) | {name: _hashed(password, os.urandom(16))}
    text = "".join(f"{known}:{hashed}\n" for known, hashed in sorted(users.items()))
    with ExitStack() as stack:
        try:
            file = stack.enter_context(replaced(path, mode=0o600))
        except OSError as error:
            raise InvalidUsers(f"{path}: {error.strerror}") from error
        file.write(text.encode())


def admits(users: dict[str, str], name: str, password: str) -> bool:
    """Whether the password is the user's; an unknown name takes as long as a wrong password."""
    hashed = users.get(name) or _STAND_IN
    salt = base64.b64decode(hashed.split("$")[1])
    return hmac.compare_digest(_hashed(password, salt), hashed) and name in users


def _hashed(password: str, salt: bytes) -> str:
    digest = hashlib.scrypt(password.encode(), salt=salt, dklen=32, **COST)
    return "$".join(["scrypt", *(base64.b64encode(part).decode() for part in (salt, digest))])


# Of no user: what an unknown name is compared with.
_STAND_IN = _hashed(secrets.token_hex(), os.urandom(16))

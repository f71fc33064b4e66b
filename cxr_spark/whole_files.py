"""Files that appear whole or not at all: written beside their place, and then put there."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replaced(path: Path, *, mode: int | None = None) -> Iterator[IO[bytes]]:
    """A file beside the path that takes its place when the block ends well, or goes.

    Args:
        path: in a folder that is there. The file beside it has another suffix.
        mode: permissions; None: those of the file that is there, or of any new file.

    Raises:
        OSError: the folder can't be written to.
    """
    if mode is None:
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    beside = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as out:
            yield out
            out.flush()
            os.fsync(descriptor)
        beside.chmod(mode)
        beside.replace(path)
    except BaseException:
        beside.unlink()
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

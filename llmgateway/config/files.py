"""The files that a config names: whether they can be read, and the secrets that some of them hold.

What is wrong is said without a file's name or content, as either may be a secret.
"""

import os
import stat
from pathlib import Path
from typing import Final

MOST_SECRET_BYTES: Final = 64 * 1024
MOST_CERTIFICATE_BYTES: Final = 8 << 20
OPEN: Final = (
    "other users of this machine can read that file; make it readable by the gateway only (chmod 600)"
)


class Unreadable(ValueError):
    """A file cannot be used; the text says why, and what to do."""


def check(path: Path) -> None:
    """See that a file can be read. Raises Unreadable."""
    _read(path, 0)


def check_folder(path: Path) -> None:
    """See that files can be made in a folder. Raises Unreadable."""
    if not path.is_dir():
        raise Unreadable("there is no such folder; make it, or leave this out for the system's own")
    if not os.access(path, os.W_OK | os.X_OK):
        raise Unreadable("nothing can be written there; let the user who runs the gateway write into it")


def check_certificates(path: Path) -> None:
    """See that a file can be read and looks like certificates. Raises Unreadable."""
    if b"CERTIFICATE-----" not in _read(path, MOST_CERTIFICATE_BYTES):
        raise Unreadable("the file holds no certificate in PEM; name one with -----BEGIN CERTIFICATE-----")


def secret(path: Path) -> str:
    """Give what a file holds, without the line ends that editors put behind it. Raises Unreadable."""
    content = _read(path, MOST_SECRET_BYTES + 1)
    if len(content) > MOST_SECRET_BYTES:
        raise Unreadable("the file is too large for a secret; name one that holds nothing else")
    try:
        text = content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise Unreadable("the file is not text; name one that holds nothing but the secret") from None
    if not text:
        raise Unreadable("the file is empty; write the secret into it")
    return text


def is_open(file: os.stat_result, *, to: int) -> bool:
    """Tell whether others can read a file than who has to, of whom `to` is the gateway's user.

    Its group counts as others only where the gateway owns the file, and is not root: what belongs to root is
    read by way of its group.
    """
    needless = stat.S_IROTH | (stat.S_IRGRP if to == file.st_uid != 0 else 0)
    return stat.S_ISREG(file.st_mode) and bool(file.st_mode & needless)


def is_open_at(file: Path) -> bool:
    """Tell that of the file at a path."""
    try:
        return is_open(file.stat(), to=os.geteuid())
    except OSError:
        return False  # whether it is there is told elsewhere


def _read(path: Path, most_bytes: int) -> bytes:
    try:
        if path.exists() and not path.is_file():  # a pipe would wait for its other end
            raise Unreadable("this is not a file; write the path of one")
        with path.open("rb") as opened:
            return opened.read(most_bytes)
    except FileNotFoundError:
        raise Unreadable(
            "there is no such file; write its path, seen from the folder of this file, or a full one"
        ) from None
    except OSError as exc:
        raise Unreadable(
            f"the file cannot be read ({exc.strerror}); let the user who runs the gateway read it"
        ) from None

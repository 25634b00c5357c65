"""Recognizes a full disk in the errors of any library, and says what to do about it in one message."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

_CODES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEXTS = (os.strerror(errno.ENOSPC), "No usable temporary directory", "database or disk is full")


def explain_full_disk(error: BaseException, folders: Iterable[str] = ()) -> str | None:
    """Returns a message with a remedy if an error, or one that it was raised from, is due to a full disk, else None.

    Args:
      folders: Folders that the command writes to, whose free space the message states if the error names no file.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _CODES:
            path = cause.filename2 or cause.filename  # of a copy, the second is the target
            if isinstance(path, str):
                return f"{path} cannot be written: {cause.strerror}; free some space there and try again"
            return _message(str(cause.strerror), folders)
        if text := next((text for text in _TEXTS if text in str(cause)), None):
            return _message(text, folders)
        cause = cause.__cause__ or cause.__context__
    return None


def _message(reason: str, folders: Iterable[str]) -> str:
    places = []
    for folder in dict.fromkeys([*folders, os.environ.get("TMPDIR") or tempfile.gettempdir()]):
        if Path(folder).is_dir():
            places.append(f"{folder} has {shutil.disk_usage(folder).free / 2**20:,.0f} MiB")
    return f"a file cannot be written: {reason}; free some space and try again ({', '.join(places)} left)"

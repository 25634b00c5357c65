"""Forks a process that has all imports of this one, for tests with real signals and kills."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path


def fork(work: Callable[[], object], output: Path) -> int:
    """Runs `work` in a forked process with its own process group; returns the process id.

    The exit code is 0, that of a SystemExit, or 1 if another exception was raised.

    Args:
      output: File to which stdout and stderr are appended.
    """
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.setpgid(0, 0)
        descriptor = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        for name, number in (("stdout", 1), ("stderr", 2)):  # pytest replaced them
            setattr(sys, name, os.fdopen(number, "w", buffering=1, closefd=False))
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)

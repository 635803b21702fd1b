"""How many files a process may have open."""

from __future__ import annotations

import contextlib
import resource
import sys


def most_open_files() -> int:
    """How many files this process may open, after it has asked for all that it can have.

    A mapped entry is an open file. The usual limit of 1,024 is what `select` can take, which
    nothing here uses; what the system grants beyond that is there to be asked for.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # systems differ in what "unlimited" may mean
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return soft if soft != resource.RLIM_INFINITY else sys.maxsize

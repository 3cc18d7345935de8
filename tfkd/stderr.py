"""What compiled libraries write to stderr, past Python."""

import contextlib
import os
import sys
import tempfile


@contextlib.contextmanager
def without_lines(*beginnings):
    """Drops lines that libraries write to the stderr of the process.

    Other lines appear when the context ends.

    Args:
        *beginnings: Bytes with which those lines begin; `b""` for all.
    """
    try:
        own = os.dup(2)
    except OSError:  # There is none, so nobody reads it.
        yield
        return
    with tempfile.TemporaryFile() as told:
        os.dup2(told.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(own, 2)
            os.close(own)
            told.seek(0)
            for line in told:
                if not line.startswith(beginnings):
                    os.write(2, line)

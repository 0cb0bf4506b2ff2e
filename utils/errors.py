"""What a user sees when something is wrong: one sentence and exit code 2, never a traceback."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class InputError(Exception):
    """Bad input. The message says what is wrong, where, and what to do."""


def run_script(main: Callable[[], None]) -> None:
    """Run a stage script's `main` and turn what the user can mend into one sentence on stderr.

    Exit codes: 0 done, 2 bad input or full disk, 130 interrupted (rerun the same command to go on). Anything else is
    a bug and keeps its traceback.
    """
    try:
        main()
    except InputError as error:
        _stop(first_cause(error), EXIT_BAD_INPUT)
    except BrokenPipeError:
        # The reader of our output (`| head`) went away: nothing to say, and nothing more to write to stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if (sentence := _environment_sentence(error)) is None:
            raise
        _stop(sentence, EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        _stop("interrupted; run the same command again (without overwrite) to go on from here", EXIT_INTERRUPTED)


def first_cause(error: InputError) -> str:
    """The sentence of an error, also when a DataLoader worker has wrapped it in its own traceback text."""
    text = str(error)
    if "Original Traceback" in text:
        return text.rsplit("InputError: ", 1)[-1].strip()
    return text


def _environment_sentence(error: OSError) -> str | None:
    known = {
        errno.ENOSPC: "no space left on the disk; free some and run the same command again to go on from here",
        errno.EDQUOT: "the disk quota is used up; free some and run the same command again to go on from here",
        errno.EACCES: "permission denied; choose a folder you may read and write",
        errno.EROFS: "the file system is read-only; choose another folder",
        errno.EEXIST: "a file stands where a folder is needed; move it away or choose another folder",
        errno.ENOTDIR: "a part of this path is a file, not a folder; choose another path",
        errno.ENAMETOOLONG: "this name is too long for the file system; choose a shorter one",
    }
    if error.errno not in known:
        return None
    return f"{error.filename or 'writing'}: {known[error.errno]}"


def _stop(sentence: str, exit_code: int) -> None:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(exit_code)

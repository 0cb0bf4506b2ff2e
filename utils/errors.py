"""What a user sees when something is wrong: one sentence and exit code 2, never a traceback."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
_ONE_SIGNAL_S = 1.0  # the same signal again within this time was sent by the same event


class InputError(Exception):
    """Bad input. The message says what is wrong, where, and what to do."""


class Terminated(BaseException):
    """SIGTERM was received and the work at hand is finished."""


class StopRequest:
    """SIGTERM, and SIGINT on request, as a flag that long work looks at between items; a second one ends at once.

    A scheduler sends SIGTERM some seconds before it kills: time to finish the item at hand, not the run. It may reach a
    process twice at nearly the same time, from the scheduler and forwarded by a launcher; that counts as one.

    Args:
        on_interrupt: SIGINT (Ctrl-C) waits for the item at hand, too.
        is_patient: whether there is an item at hand; until then (while torch is imported) the first one ends at once.
    """

    def __init__(self, *, on_interrupt: bool = False, is_patient: bool = True) -> None:
        self.is_patient = is_patient
        self._signals = (signal.SIGTERM, signal.SIGINT) if on_interrupt else (signal.SIGTERM,)
        self._previous: dict[int, Any] = {}
        self._received: int | None = None
        self._received_s = 0.0

    @property
    def is_set(self) -> bool:
        """Whether one of the signals has come."""
        return self._received is not None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # only there may handlers be installed
            self._previous = {number: signal.signal(number, self._handle) for number in self._signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def request(self, number: int = signal.SIGTERM) -> None:
        """Ask for the stop as if the signal had come, e.g. because another process of the run received it."""
        if self._received is None:
            self._received, self._received_s = number, time.monotonic()

    def _handle(self, number: int, _: object) -> None:
        if number == self._received and time.monotonic() - self._received_s < _ONE_SIGNAL_S:
            return
        if self.is_set or not self.is_patient:
            self._received = number
            self.raise_if_set()
        self.request(number)

    def raise_if_set(self) -> None:
        """End here if a signal has come.

        Raises:
            Terminated: it was SIGTERM.
            KeyboardInterrupt: it was SIGINT.
        """
        if self._received == signal.SIGTERM:
            raise Terminated
        if self._received == signal.SIGINT:
            raise KeyboardInterrupt


def run_script(main: Callable[[], None]) -> None:
    """Run a stage script's `main` and turn what the user can mend into one sentence on stderr.

    Exit codes: 0 done, 2 bad input or full disk, 130 interrupted, 143 terminated (rerun the same command to go on).
    Anything else is a bug and keeps its traceback.
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
    except Terminated:
        _stop("terminated; run the same command again (without overwrite) to go on from here", EXIT_TERMINATED)


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

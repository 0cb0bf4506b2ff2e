"""How a script ends: one sentence and an exit code, and a signal that lets the work at hand be finished."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import PROJECT, fork

import utils.errors
from utils.errors import InputError, StopRequest, Terminated, first_cause, run_script


def raise_it(error: BaseException) -> None:
    raise error


def outcome(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        run_script(lambda: raise_it(error))
    return stop.value.code, capsys.readouterr().err


# --- exit codes ------------------------------------------------------------------------------------------------------

AGAIN = "run the same command again (without overwrite) to go on from here"
ENDS = {
    "bad input": (InputError("a.csv line 3: bad"), 2, "error: a.csv line 3: bad\n"),
    "interrupted": (KeyboardInterrupt(), 130, f"error: interrupted; {AGAIN}\n"),
    "terminated": (Terminated(), 143, f"error: terminated; {AGAIN}\n"),
    "full disk": (
        OSError(errno.ENOSPC, "No space left on device", "out/a.mp4"),
        2,
        "error: out/a.mp4: no space left on the disk; free some and run the same command again to go on from here\n",
    ),
}


@pytest.mark.parametrize(("error", "code", "sentence"), ENDS.values(), ids=ENDS)
def test_how_a_script_ends(capsys, error, code, sentence):
    assert outcome(error, capsys) == (code, sentence)


def test_a_script_that_is_done_says_nothing(capsys):
    run_script(lambda: None)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(errno.EIO, "broken"), RuntimeError("another")])
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        run_script(lambda: raise_it(error))


def test_the_sentence_of_a_loader_worker_is_found():
    text = (
        "Caught InputError in DataLoader worker process 0.\nOriginal Traceback\n  x\nutils.errors.InputError: a: bad\n"
    )
    assert first_cause(InputError(text)) == "a: bad"


def test_terminated_is_no_exception_that_a_bare_handler_takes():
    assert not issubclass(Terminated, Exception)


# --- the request to stop ---------------------------------------------------------------------------------------------


def test_a_first_signal_is_a_flag_and_a_later_one_ends_the_work(monkeypatch):
    with StopRequest() as stop:
        assert not stop.is_set
        stop.raise_if_set()
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set
        with pytest.raises(Terminated):
            stop.raise_if_set()
        signal.raise_signal(signal.SIGTERM)  # the same event, forwarded by a launcher
        monkeypatch.setattr(utils.errors, "_ONE_SIGNAL_S", 0.0)
        with pytest.raises(Terminated):
            signal.raise_signal(signal.SIGTERM)


def test_the_handler_is_there_only_inside():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) != before
        with StopRequest() as inner:
            signal.raise_signal(signal.SIGTERM)
            assert inner.is_set
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_handler_is_taken_back_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), StopRequest():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_request_of_an_outer_block_is_its_own():
    with StopRequest() as outer:
        with StopRequest():
            signal.raise_signal(signal.SIGTERM)
        assert not outer.is_set
        signal.raise_signal(signal.SIGTERM)
        assert outer.is_set


def test_in_another_thread_it_is_never_set_and_changes_no_handler():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with StopRequest() as stop:
            seen.append((stop.is_set, signal.getsignal(signal.SIGTERM) == before))
            stop.raise_if_set()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, True)]
    assert signal.getsignal(signal.SIGTERM) == before


def test_other_signals_are_left_alone():
    with StopRequest() as stop, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert not stop.is_set


@pytest.mark.parametrize(("num_signals", "code"), [(0, 0), (1, 143), (2, 143)])
def test_the_exit_code_of_a_stopped_script(num_signals, code):
    def work() -> None:
        with StopRequest() as stop:
            for _ in range(num_signals):
                os.kill(os.getpid(), signal.SIGTERM)
            stop.raise_if_set()

    def run() -> None:
        try:
            run_script(work)
        except SystemExit as stop:
            os._exit(stop.code)

    assert fork(run) == code


SLEEPER = """
import time
import utils.errors
from utils.errors import StopRequest, run_script

def work():
    with StopRequest() as stop:
        print("ready", flush=True)
        for _ in range(1000):
            time.sleep(0.01)
            stop.raise_if_set()

run_script(work)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_a_signalled_process_ends_within_a_second(number, code):
    with subprocess.Popen(
        [sys.executable, "-c", SLEEPER], cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        sent_s = time.monotonic()
        _, stderr = process.communicate(timeout=30)
    assert time.monotonic() - sent_s < 5
    assert process.returncode == code
    assert stderr.startswith("error: ") and "Traceback" not in stderr

"""Turns what went wrong into one sentence, one hint and an exit code."""

import functools
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

from dar_probe.errors import DarProbeError, out_of_memory

DEBUG = False
INTERNAL_ERROR, INTERRUPTED = 5, 130
CONTINUE = "Hint: analyze, ablate and train continue with --resume."


class _Terminated(KeyboardInterrupt):
    """SIGTERM: schedulers stop a job with it, some time before they kill it."""


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command so that every error leaves by the documented exit codes."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            with _terminable():
                command(*args, **kwargs)
        except DarProbeError as error:
            _say(f"Error: {error}", error.hint and f"Hint: {error.hint}")
            raise SystemExit(error.exit_code) from None
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise  # Typer's own ways to leave
        except _Terminated:
            _say("Terminated.", CONTINUE)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)  # who stopped us sees that we died of it
        except KeyboardInterrupt:
            _say("Interrupted.", CONTINUE)
            raise SystemExit(INTERRUPTED) from None
        except Exception as error:
            if out_of_memory(error):
                _say(
                    "Error: there is not enough memory for this batch.",
                    "Hint: lower --batch-size, or choose another --device.",
                )
                raise SystemExit(4) from None
            _say(
                f"Internal error: {type(error).__name__}: {error}",
                "Hint: run again with --debug and report the traceback.",
            )
            raise SystemExit(INTERNAL_ERROR) from None

    return run


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM clean up as Ctrl-C does, where nobody else has plans for it."""
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    )
    if ours:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(*_: object) -> None:
    raise _Terminated


def _say(sentence: str, hint: str) -> None:
    if DEBUG:
        traceback.print_exc()
    for line in filter(None, (sentence, hint)):
        sys.stderr.write(line.encode("ascii", "backslashreplace").decode() + "\n")

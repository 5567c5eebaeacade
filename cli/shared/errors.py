"""Turns every error of a command into one sentence, one hint and an exit code."""

import functools
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

from dar_probe.cli.shared import typer_group
from dar_probe.cli.shared.error_sentences import address
from dar_probe.errors import DarProbeError, ExitCode, out_of_memory

DEBUG = False
CONTINUE = "Hint: analyze, ablate and train continue with --resume."
LONGEST = 800  # characters of a sentence; of what a user typed, the middle may be left out


class Commands(typer_group.Commands):
    """The commands; what is wrong with their arguments is told like every other error."""

    @staticmethod
    def tell(sentence: str, hint: str) -> None:
        """Write a usage error on stderr."""
        _say(sentence, hint)


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
            _say(f"Error: {error}", error.hint and f"Hint: {error.hint}", error.origin)
            if place := address(error):
                sys.stderr.write(f"More: {place}\n")
            raise SystemExit(error.exit_code) from None
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise  # Typer's own ways to leave
        except _Terminated:
            _say("Terminated.", CONTINUE)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)  # who stopped us sees that we died of it
        except KeyboardInterrupt:
            _say("Interrupted.", CONTINUE)
            raise SystemExit(ExitCode.INTERRUPTED) from None
        except Exception as error:
            if out_of_memory(error):
                _say(
                    "Error: there is not enough memory for this batch.",
                    "Hint: lower --batch-size, or choose another --device.",
                )
                raise SystemExit(ExitCode.UNMEASURABLE) from None
            _say(
                f"Internal error: {type(error).__name__}: {error}",
                "Hint: run again with --debug and report the traceback.",
            )
            raise SystemExit(ExitCode.INTERNAL) from None

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


def _say(sentence: str, hint: str, origin: str = "") -> None:
    """Write a sentence in one line and a hint, in which a hostile name can do nothing.

    Below them stand the lines of the user's own files that led to it.
    """
    trace = traceback.format_exc().rstrip().splitlines() if DEBUG else []
    sentence = re.sub(r"\s*[\r\n]\s*", " ", sentence.strip())
    if len(sentence) > LONGEST and not DEBUG:
        sentence = f"{sentence[: LONGEST // 2]} ... {sentence[-LONGEST // 2 :]}"
    where = ["Where:", *origin.splitlines()] if origin and not DEBUG else []
    for line in (*trace, sentence, *hint.splitlines(), *where):
        shown = "".join(c if " " <= c <= "~" else ascii(c)[1:-1] for c in line)
        sys.stderr.write(shown + "\n")

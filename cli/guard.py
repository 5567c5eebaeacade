"""Turns what went wrong into one sentence, one hint and an exit code."""

import functools
import sys
import traceback
from collections.abc import Callable
from typing import Any

import typer

from dar_probe.errors import DarProbeError, out_of_memory

DEBUG = False
INTERNAL_ERROR, INTERRUPTED = 5, 130


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command so that every error leaves by the documented exit codes."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except DarProbeError as error:
            _say(f"Error: {error}", error.hint and f"Hint: {error.hint}")
            raise SystemExit(error.exit_code) from None
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise  # Typer's own ways to leave
        except KeyboardInterrupt:
            _say("Interrupted.", "Hint: analyze, ablate and train continue with --resume.")
            raise SystemExit(INTERRUPTED) from None
        except BrokenPipeError:
            raise SystemExit(0) from None  # the reader of our output has seen enough
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


def _say(sentence: str, hint: str) -> None:
    """Write a sentence on one line, and a hint; no text of somebody else's steers the terminal."""
    trace = traceback.format_exc().rstrip() if DEBUG else ""
    for text in filter(None, (trace, " ".join(sentence.splitlines()), hint)):
        safe = "".join(c if " " <= c <= "~" or c == "\n" else ascii(c)[1:-1] for c in text)
        sys.stderr.write(safe + "\n")

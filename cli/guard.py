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
    if DEBUG:
        traceback.print_exc()
    for line in filter(None, (sentence, hint)):
        sys.stderr.write(line.encode("ascii", "backslashreplace").decode() + "\n")

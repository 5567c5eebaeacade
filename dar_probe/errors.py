"""What a user can meet: one sentence, one hint and one exit code each."""

import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path


class ExitCode(IntEnum):
    """How a command ended: a number, and what it says in a few words.

    The command line's help and the table in the docs read the words here.
    """

    sentence: str

    def __new__(cls, number: int, sentence: str) -> "ExitCode":
        """Make a number that carries its sentence."""
        code = int.__new__(cls, number)
        code._value_ = number
        code.sentence = sentence
        return code

    DONE = 0, "done, whatever was found"
    FAILED = 1, "the verdict fails where it was asked for (audit, --fail-on)"
    USAGE = 2, "an argument or data do not fit, or files cannot be written"
    REFUSED = 3, "a checkpoint or an analysis is refused"
    UNMEASURABLE = 4, "nothing could be measured, compared or judged by the rule"
    INTERNAL = 5, "internal error"
    INTERRUPTED = 130, "interrupted"


class DarProbeError(ValueError):
    """Base of every error that is the input's fault, not ours.

    Attributes:
        hint: what to do about it, one sentence; may be empty. A traceback shows it, too.
        origin: where in the user's own files it began, as a traceback prints that; may be empty.
        exit_code: the exit code of the command line.
    """

    exit_code = ExitCode.USAGE

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        self.origin = ""
        if hint:
            self.add_note(f"Hint: {hint}")


class UsageError(DarProbeError):
    """An argument, a setting or a data file that does not fit (exit code 2)."""


class InUseError(UsageError):
    """A folder that another process is writing (exit code 2)."""


class CheckpointError(DarProbeError):
    """A file that is refused, or that is no known checkpoint or analysis (exit code 3)."""

    exit_code = ExitCode.REFUSED


class ProbeError(DarProbeError):
    """Nothing could be measured: NaN or Inf in weights or loss, no stack found (exit code 4)."""

    exit_code = ExitCode.UNMEASURABLE


def anchor(module: str) -> str:
    """Return where the errors of a module stand on the page of all errors.

    Args:
        module: below this package, as in "checkpoints.reader".
    """
    return "error-" + module.replace(".", "-").replace("_", "-")


def raised_in(error: DarProbeError) -> str:
    """Return the module that raised an error, as ``anchor`` takes it; "" where none of ours did."""
    found = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__", ""))
        if module.startswith(_PACKAGE) and module != __name__:
            found = module.removeprefix(_PACKAGE)
    return found


def out_of_memory(error: Exception) -> bool:
    """Tell whether an allocator, of torch or of Python, has run out of memory."""
    name = type(error).__name__
    return name in ("OutOfMemoryError", "MemoryError") or "can't allocate memory" in str(error)


def lost_connection(error: Exception) -> bool:
    """Tell whether another process of the job is gone in the middle of a collective."""
    # Gloo raises bare RuntimeErrors, which begin with the place in its source.
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return "DistError" in kinds or ("RuntimeError" in kinds and "gloo" in str(error).lower())


FRAMES = 5  # of the user's own code that an error shows


@contextmanager
def blamed(refuse: Callable[[str], DarProbeError], *, ours: bool = True) -> Iterator[None]:
    """Raise ``refuse(why)`` for whatever somebody else's code raises within.

    Our own errors, a lack of memory and the end of another process of the job pass as they are. The
    error's ``origin`` has the lines of the user's files that led to it.

    Args:
        refuse: makes the error from its reason.
        ours: also for what this package's own code raises within.
    """
    try:
        yield
    except DarProbeError:
        raise
    except Exception as error:  # somebody else's code fails in any way it likes
        if out_of_memory(error) or lost_connection(error):
            raise
        frames = traceback.extract_tb(error.__traceback__)
        if not ours and _HOME in Path(frames[-1].filename).parents:
            raise
        refusal = refuse(f"{type(error).__name__}: {error}")
        own = [frame for frame in frames if _is_users(frame.filename)]
        refusal.origin = "".join(traceback.format_list(own[-FRAMES:])).rstrip()
        raise refusal from error


_PACKAGE = f"{__name__.partition('.')[0]}."
_HOME = Path(__file__).parent
_LIBRARIES = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]


def _is_users(file: str) -> bool:
    """Tell whether a file of a traceback belongs neither to this package nor to a library."""
    if file.startswith("<frozen"):
        return False
    return not any(home in Path(file).parents for home in (_HOME, *_LIBRARIES))

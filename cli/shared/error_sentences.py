"""The sentences of errors, read from the source that makes them, and their places on the site."""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import dar_probe
from dar_probe import errors
from dar_probe.runtime.version import PAGES

PAGE = f"{PAGES}/reference/errors.html"  # of all errors
LONGEST = 1_000  # characters of a message that is looked for
ROOT = Path(dar_probe.__file__).parent
KINDS = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.DarProbeError)
}


@dataclass(frozen=True)
class Sentence:
    """What an error says.

    Attributes:
        code: its exit code.
        parts: of the sentence, between the values that it quotes.
        hint: the same of its hint; () where there is none.
    """

    code: int
    parts: tuple[str, ...]
    hint: tuple[str, ...]

    def fits(self, message: str) -> bool:
        """Tell whether a message is this sentence with some values."""
        return re.fullmatch(".*".join(map(re.escape, self.parts)), message, re.DOTALL) is not None


def sentences(path: Path) -> list[Sentence]:
    """Return every sentence of a module, each once, in the order of its source."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        kind = KINDS.get(node.func.id)
        if kind is None or not node.args or not any(parts := _parts(node.args[0])):
            continue
        hint = next((_parts(k.value) for k in node.keywords if k.arg == "hint"), ())
        found.append(Sentence(kind.exit_code.value, parts, hint if any(hint) else ()))
    return list(dict.fromkeys(found))


def address(error: errors.DarProbeError) -> str:
    """Return where an error stands on the site; "" where no module of ours raised it."""
    module = errors.raised_in(error)
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    if not module or not path.is_file():
        return ""
    fitting = [
        (sum(map(len, sentence.parts)), number)
        for number, sentence in enumerate(sentences(path), 1)
        if len(str(error)) <= LONGEST and sentence.fits(str(error))
    ]
    if not fitting:  # its sentence is made in another module
        return f"{PAGE}#{errors.anchor(module)}"
    _, number = max(fitting)  # the one that says most itself: "… is …" fits too much
    return f"{PAGE}#{errors.anchor(module)}-{number}"


def _parts(node: ast.expr) -> tuple[str, ...]:
    """Return the constant parts of a text; ("", "") where it is a value."""
    if isinstance(node, ast.Constant):
        return (str(node.value or ""),)
    if isinstance(node, ast.JoinedStr):
        found = [""]
        for value in node.values:
            if isinstance(value, ast.Constant):
                found[-1] += str(value.value)
            else:
                found.append("")
        return tuple(found)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _parts(node.left), _parts(node.right)
        return (*left[:-1], left[-1] + right[0], *right[1:])
    return ("", "")

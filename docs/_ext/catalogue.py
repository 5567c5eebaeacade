"""Every error that users can meet, as Markdown, from the places in the code that raise it.

Each has an address of its own: that which the command line prints below it.
"""

import ast
from pathlib import Path

from dar_probe import errors
from dar_probe.cli.shared.error_sentences import ROOT, sentences


def reference() -> str:
    """Return one section a module: its sentences, their hints and exit codes."""
    parts = []
    for path in sorted(ROOT.rglob("*.py")):
        found = sentences(path)
        if not found:
            continue
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        parts.append(f"({errors.anchor(module)})=\n### {module}\n\n{_about(path)}\n")
        for number, one in enumerate(found, 1):
            hint = f"  \n*Hint:* {_text(one.hint)}" if one.hint else ""
            parts.append(f"({errors.anchor(module)}-{number})=\n")
            parts.append(f"**{_text(one.parts)}** (exit code {one.code}){hint}\n")
        parts.append("")
    return "\n".join(parts)


def _about(path: Path) -> str:
    """Return what a module says of itself in its first sentence."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n\n")[0].replace("\n", " ")


def _text(parts: tuple[str, ...]) -> str:
    """Return a text with an ellipsis where a value stands."""
    return "…".join(map(escaped, parts)).strip()


def escaped(text: str) -> str:
    """Return a text that Markdown shows as it is."""
    for mark in "\\`*_{}[]<>#|~$":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("\n", " ")

"""Every error that users can meet, as Markdown, from the places in the code that raise it.

Errors of one module have one address: that which the command line prints below an error.
"""

import ast
from pathlib import Path

import dar_probe
from dar_probe import errors

ROOT = Path(dar_probe.__file__).parent
KINDS = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.DarProbeError)
}


def reference() -> str:
    """Return one section a module: its sentences, their hints and exit codes."""
    parts = []
    for path in sorted(ROOT.rglob("*.py")):
        found = list(dict.fromkeys(_raised(path)))
        if not found:
            continue
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        parts.append(f"({errors.anchor(module)})=\n### {module}\n\n{_about(path)}\n")
        for code, sentence, hint in found:
            hint = f"  \n  *Hint:* {hint}" if hint else ""
            parts.append(f"- **{sentence}** (exit code {code}){hint}")
        parts.append("")
    return "\n".join(parts)


def _about(path: Path) -> str:
    """Return what a module says of itself in its first sentence."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n\n")[0].replace("\n", " ")


def _raised(path: Path) -> list[tuple[int, str, str]]:
    """Return exit code, sentence and hint of every error that a module makes."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        kind = KINDS.get(node.func.id)
        sentence = _text(node.args[0]) if kind and node.args else ""
        if kind is None or not sentence:
            continue
        hint = next((_text(k.value) for k in node.keywords if k.arg == "hint"), "")
        found.append((kind.exit_code.value, sentence, hint))
    return found


def _text(node: ast.expr) -> str:
    """Return a text with an ellipsis where a value stands; "" where it is made elsewhere."""
    if isinstance(node, ast.Constant):
        return escaped(str(node.value)) if node.value else ""
    if isinstance(node, ast.JoinedStr):
        parts = [escaped(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values]  # type: ignore[arg-type]
        return "".join(parts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + (_text(node.right) or "…")
    return ""


def escaped(text: str) -> str:
    """Return a text that Markdown shows as it is."""
    for mark in "\\`*_{}[]<>#|~$":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("\n", " ")

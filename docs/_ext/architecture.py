"""The storeys of the package, as Markdown, from the contract that import-linter keeps."""

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

from dar_probe.runtime.version import HOME
from tables import table

ROOT = Path(__file__).parents[2]
JOB = re.compile(r"\*\*Job\.\*\*\s+(.+?\.)(?=\s|$)", re.DOTALL)


def layers() -> str:
    """Return a table with a row for each package or module, the highest storey first."""
    rows = []
    for at, storey in enumerate(storeys()):
        rows += [[str(len(storeys()) - at), _linked(name), job(name)] for name in storey]
    return table(["storey", "package", "its job"], rows)


def storeys() -> list[list[str]]:
    """Return the names of each storey in the contract on the packages of dar_probe."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    contracts: list[dict[str, Any]] = tomllib.loads(text)["tool"]["importlinter"]["contracts"]
    (whole,) = (
        one for one in contracts if one["type"] == "layers" and one["containers"] == ["dar_probe"]
    )
    return [re.findall(r"\w+", layer) for layer in whole["layers"]]


def job(name: str) -> str:
    """Return the first sentence on the job of a package, or of the docstring of a module."""
    home = ROOT / "dar_probe" / name
    if home.is_dir():
        found = JOB.search((home / "README.md").read_text(encoding="utf-8"))
        assert found is not None, f"the README of {name} names no job"
        return found[1]
    text = ast.get_docstring(ast.parse(home.with_suffix(".py").read_text(encoding="utf-8")))
    assert text is not None, f"{name} has no docstring"
    return text.partition("\n")[0].replace("``", "`")


def _linked(name: str) -> str:
    """Return the name with a link to its code; some packages are links into the root's folders."""
    path = (ROOT / "dar_probe" / name).resolve()
    kind = "tree" if path.is_dir() else "blob"
    path = path if path.is_dir() else path.with_suffix(".py")
    return f"[`{name}`]({HOME}/{kind}/main/{path.relative_to(ROOT).as_posix()})"

"""Prints the lowest version of every declared dependency, for ``pip install --constraint``.

    python tests/supply/lowest.py test --except torch >lowest.txt

Needs nothing but Python: it runs before anything is installed.
"""

import argparse
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)\s*(?:\[(?P<extras>[^]]*)\])?(?P<bounds>[^;]*)")


def lowest(project: dict, *extras: str) -> dict[str, str]:
    """Return the lower bound of every dependency of ``project`` and of some of its extras.

    Args:
        project: the table of that name in pyproject.toml.
        extras: names of its optional dependencies; those that these name are followed.

    Raises:
        ValueError: a dependency without a lower bound.
    """
    found = {}
    waiting = [*project["dependencies"], *_of(project, extras)]
    for requirement in waiting:
        parts = REQUIREMENT.match(requirement)
        if parts["name"] == project["name"]:
            waiting += _of(project, re.split(r"\s*,\s*", parts["extras"].strip()))
            continue
        bound = re.search(r">=\s*([^,\s]+)", parts["bounds"])
        if bound is None:
            raise ValueError(f"{requirement!r} has no lower bound")
        found[parts["name"]] = bound[1]
    return found


def _of(project, extras):
    return [line for extra in extras for line in project["optional-dependencies"][extra]]


def main() -> None:
    """Print ``name==lowest`` lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("extras", nargs="*", help="extras whose dependencies count too")
    parser.add_argument("--except", nargs="*", default=[], dest="without", metavar="NAME")
    arguments = parser.parse_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for name, bound in sorted(lowest(project, *arguments.extras).items()):
        if name not in arguments.without:
            print(f"{name}=={bound}")


if __name__ == "__main__":
    main()

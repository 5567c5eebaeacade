"""With --json stdout is one JSON document, whatever else there is to say; stderr is silent."""

import json

import pytest

from tests.helpers.shell import run, without_progress
from tests.hostile.playground import Playground

TINY = ["--samples", "1", "--noise-levels", "1"]
COMMANDS = {
    "analyze": (["plain.pt", *TINY], {"verdict", "findings", "metrics", "assumptions"}),
    "ablate": (["dar.pt", *TINY, "--pairs", "1", "--kinds", "gate"], {"kinds", "effects"}),
    "audit": (["mine:loud"], {"verdict", "findings", "metrics", "assumptions"}),
    "bench": (["plain.pt", "--repeats", "1"], {"floor", "probe", "ratio", "machine"}),
    "compare": (["analysis", "other"], {"reference", "models", "pairs"}),
    "inspect": (["plain.pt"], {"file", "family", "parameters", "sites"}),
}


def refuse(word):
    raise AssertionError(f"{word} is no JSON")


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    return Playground(tmp_path_factory.mktemp("ground"))


@pytest.mark.parametrize("command", COMMANDS)
def test_stdout_is_one_document(ground, command):
    arguments, keys = COMMANDS[command]
    done = run(command, *arguments, "--json", cwd=ground.folder, light=True)
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(done.stdout, parse_constant=refuse)
    assert keys <= set(found)
    # What somebody else's module prints is theirs, but no part of the document.
    assert without_progress(done.stderr) == ("hello\n" if command == "audit" else "")
    ground.changes()

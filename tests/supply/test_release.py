"""What names the version, the addresses and the Pythons of a release says the same everywhere."""

import re
import tomllib
from pathlib import Path

import dar_probe
from dar_probe.runtime.version import HOME, SITE

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HEADING = re.compile(r"^## \[(.+?)\] - (.+)$", re.MULTILINE)
PAPER = "https://arxiv.org/abs/2605.20708"


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_one_version():
    version = re.escape(dar_probe.__version__)
    newest, date = HEADING.findall(read("CHANGELOG.md"))[0]
    assert newest == dar_probe.__version__
    assert re.fullmatch(r"Unreleased|\d{4}-\d\d-\d\d", date)
    assert re.search(rf"^version: {version}$", read("CITATION.cff"), re.MULTILINE)
    assert re.search(rf"^  version = \{{{version}\}},$", read("docs/citing.md"), re.MULTILINE)


def test_every_version_of_the_changelog_has_an_address():
    text = read("CHANGELOG.md")
    for version, _ in HEADING.findall(text):
        assert re.search(rf"^\[{re.escape(version)}\]: {HOME}", text, re.MULTILINE), version


def test_one_address():
    urls = PROJECT["urls"]
    assert urls["Homepage"] == urls["Documentation"] == SITE
    assert urls["Source"] == HOME and urls["Paper"] == PAPER
    assert urls["Changelog"].startswith(HOME) and urls["Issues"] == f"{HOME}/issues"
    cited = read("CITATION.cff")
    for address in (HOME, SITE, PAPER):
        assert f" {address}\n" in cited
        assert address in read("docs/citing.md") or address == SITE


def test_one_title_of_the_paper():
    title = "Rethinking Cross-Layer Information Routing in Diffusion Transformers"
    for name in ("README.md", "CITATION.cff", "docs/citing.md"):
        assert title in " ".join(read(name).split()), name


def test_the_pythons_are_those_that_are_tested():
    (tested,) = re.findall(r"python: \[(.+)\]", read(".github/workflows/ci.yml"))
    named = [c.rpartition(":: ")[2] for c in PROJECT["classifiers"] if ":: Python :: 3." in c]
    assert named == re.findall(r"[\d.]+", tested)
    assert PROJECT["requires-python"] == f">={named[0]}"


def test_forms_lead_where_something_is():
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        for address in re.findall(r"https://dar-probe[^\s)]*", path.read_text(encoding="utf-8")):
            page = re.fullmatch(rf"{SITE}(?:/latest/(.+)\.html)?", address)
            assert page, address
            assert page[1] is None or (ROOT / "docs" / f"{page[1]}.md").is_file(), address


# Names of conda-forge that are not those of PyPI.
CONDA = {"torch": "pytorch", "matplotlib": "matplotlib-base", "seaborn": "seaborn-base"}


def test_the_recipe_of_conda_forge_asks_for_what_the_project_does():
    recipe = read("docs/contributing/releasing.md").partition("schema_version: 1")[2]
    (run,) = re.findall(r"^  run:\n((?:    - .+\n)+)", recipe, re.MULTILINE)
    found = [line.removeprefix("    - ") for line in run.splitlines()]
    wanted = [re.match(r"([\w-]+)(.*)", line) for line in PROJECT["dependencies"]]
    names = [f"{CONDA.get(one[1], one[1])} {one[2]}" for one in wanted]
    assert found == ["python >=${{ python_min }}", *names]
    assert f'version: "{dar_probe.__version__}"' in recipe
    (lowest,) = re.findall(r'python_min: "(.+)"', recipe)
    assert PROJECT["requires-python"] == f">={lowest}"
    assert PROJECT["description"] in recipe
    (script,) = PROJECT["scripts"].items()
    assert f"- {script[0]} = {script[1]}" in recipe

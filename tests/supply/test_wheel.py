"""What is distributed: its files, its metadata, and that it works where no repository is."""

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import dar_probe
from dar_probe.results import store
from tests.helpers.synthetic import dataset
from tests.supply.lowest import lowest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = {"dar_probe": "dar_probe", "cli": "dar_probe/cli", "reports": "dar_probe/reports",
           "fixtures/digits": "dar_probe/digits"}  # fmt: skip
# What lies beside the code in a source distribution, and in no wheel.
BESIDE = ("CHANGELOG.md", "CITATION.cff", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "SECURITY.md")
INFO = f"dar_probe-{dar_probe.__version__}.dist-info"
BUILD = "import sys; from setuptools import build_meta as b; print(getattr(b, sys.argv[1])('dist'))"


def build(what, source):
    """Build as pip does, in ``source``; no registry is asked, setuptools is that of the tests."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BUILD, f"build_{what}"],
        cwd=source, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "would be ignored" not in done.stderr and "eprecat" not in done.stderr, done.stderr
    return source / "dist" / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the repository, so that nothing is built into it."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", *BESIDE):
        shutil.copy(ROOT / name, copy)
    not_there = shutil.ignore_patterns("__pycache__", "gallery", "_build", "generated")
    shutil.copytree(ROOT / "docs", copy / "docs", ignore=not_there)
    for made in ("_build/html", "reference/generated"):  # as a build of the pages leaves them
        (copy / "docs" / made).mkdir(parents=True)
        (copy / "docs" / made / "made.md").write_text("made")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=not_there, symlinks=True)
    (copy / "tests").mkdir()
    shutil.copy(__file__, copy / "tests")
    return copy


@pytest.fixture(scope="module")
def sdist(source):
    return build("sdist", source)


@pytest.fixture(scope="module")
def wheel(source):
    return build("wheel", source)


def files(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    expected = {
        f"{home}/{path.relative_to(ROOT / folder).as_posix()}": path.read_bytes()
        for folder, home in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
        and not {"__pycache__", "gallery"} & set(path.parts)
        # The READMEs of packages are for who changes them; the digits' has their licence.
        and (path.name != "README.md" or folder == "fixtures/digits")
    }
    found = files(wheel)
    info = {name.removeprefix(f"{INFO}/") for name in found if name.startswith(INFO)}
    assert info == {
        "METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "licenses/LICENSE",
    }  # fmt: skip
    assert {name: value for name, value in found.items() if not name.startswith(INFO)} == expected
    for name in (
        "py.typed",
        "digits/digits.npz",
        "reports/pages/templates/report.html.j2",
        "cli/app.py",
    ):
        assert f"dar_probe/{name}" in expected


def test_the_source_distribution_builds_the_same_wheel(sdist, wheel, tmp_path):
    with tarfile.open(sdist) as archive:
        assert not [name for name in archive.getnames() if "/tests/" in name or "made" in name]
        held = {name.partition("/")[2] for name in archive.getnames()}
        # Debian's Python 3.11.2 has no filters yet.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(tmp_path)
    (unpacked,) = tmp_path.iterdir()
    assert files(build("wheel", unpacked)) == files(wheel)
    assert held >= {*BESIDE, "docs/conf.py", "docs/index.md", "docs/_ext/tables.py"}


def test_the_metadata_says_what_the_project_says(wheel):
    said = email.message_from_bytes(files(wheel)[f"{INFO}/METADATA"])
    project = PROJECT["project"]
    assert (said["Name"], said["Version"]) == ("dar-probe", dar_probe.__version__)
    assert said["License-Expression"] == "MIT" and said["Requires-Python"] == ">=3.11"
    assert said["Description-Content-Type"] == "text/markdown"
    text = said.get_payload(decode=True).decode("utf-8")
    assert text.strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()
    plain = {line for line in said.get_all("Requires-Dist") if "extra ==" not in line}
    assert len(plain) == len(project["dependencies"])
    assert set(said.get_all("Provides-Extra")) == set(project["optional-dependencies"])
    assert dict(u.split(", ") for u in said.get_all("Project-URL")) == project["urls"]


ELSEWHERE = """
import sys
from pathlib import Path
import dar_probe, dar_probe.reports.pages.analysis
from dar_probe.cli import main
home = Path(sys.argv.pop(1))
for module in (dar_probe, sys.modules["dar_probe.cli"], dar_probe.reports.pages.analysis):
    assert home in Path(module.__file__).parents, module
assert not {"cli", "reports", "tests"} & set(sys.modules)
main()
"""


def test_it_works_where_no_repository_is(wheel, tmp_path):
    """A page needs templates and styles from the package; nothing is written beside the code."""
    home, folder = tmp_path / "site", tmp_path / "elsewhere"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, "--target", home, wheel], check=True)
    installed = sorted(home.rglob("*"))
    folder.mkdir()
    (folder / "mine").mkdir()
    store.write(dataset(blocks=2, samples=2, levels=2), folder / "mine" / "analysis.nc")

    def call(*arguments):
        done = subprocess.run(
            [sys.executable, "-c", ELSEWHERE, home, *arguments],
            cwd=folder, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": str(home)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert call("--version").strip() == f"dar-probe {dar_probe.__version__}"
    call("report", "mine")
    assert {p.name for p in (folder / "mine").iterdir()} >= {
        "report.html",
        "summary.json",
        "figures",
    }
    assert sorted(home.rglob("*")) == installed


def test_the_lowest_version_of_every_dependency_is_known():
    """What ``.ci/lowest`` installs."""
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    found = lowest(project, *extras)
    lines = {line for lines in (project["dependencies"], *extras.values()) for line in lines}
    named = {re.match(r"[\w.-]+", line)[0] for line in lines} - {"dar-probe"}
    assert set(found) == named and all(re.fullmatch(r"[\d.]+", v) for v in found.values())
    assert "diffusers" in lowest(project, "test") and "diffusers" not in lowest(project)
    with pytest.raises(ValueError, match="'torch<3' has no lower bound"):
        lowest({**project, "dependencies": ["torch<3"]})

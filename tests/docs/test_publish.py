"""Where the pages of a version go, and the list that the theme's switcher reads."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dar_probe.runtime.version import PAGES, SITE

ROOT = Path(__file__).resolve().parents[2]
PAGE = "<script>DOCUMENTATION_OPTIONS.theme_switcher_version_match = 'latest';</script>"


def publish(site, ref, text="", *, page=PAGE):
    html = site.parent / "html"
    (html / "reference").mkdir(parents=True, exist_ok=True)
    for name in ("index.html", "reference/errors.html"):
        (html / name).write_text(f"{page}{text}", encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-S", ROOT / ".ci" / "publish", html, site, ref],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def of(site, version):
    """What the pages of a folder say: the version that they take themselves for, and the text."""
    text = (site / version / "reference" / "errors.html").read_text(encoding="utf-8")
    return re.findall(r"match = '(.*)';</script>(.*)", text)[0]


def listed(site):
    """Hold the list to what pydata's switcher takes; return its versions, the preferred one."""
    found = json.loads((site / "versions.json").read_text(encoding="utf-8"))
    for entry in found:
        assert entry.keys() - {"preferred"} == {"name", "version", "url"}
        assert entry["url"] == f"{SITE}/{entry['version']}/"  # the path of a page is put behind it
        assert of(site, entry["version"])[0] == entry["version"]
    (preferred,) = (entry["version"] for entry in found if entry.get("preferred"))
    return [entry["version"] for entry in found], preferred


def test_versions_find_their_folders(tmp_path):
    site = tmp_path / "site"
    assert publish(site, "main", "one").returncode == 0
    assert listed(site) == (["latest"], "latest")
    assert of(site, "latest") == ("latest", "one") and of(site, "stable") == ("stable", "one")
    assert 'url=stable/"' in (site / "index.html").read_text(encoding="utf-8")
    assert PAGES == f"{SITE}/stable" and (site / ".nojekyll").exists()

    assert publish(site, "v0.1.0", "two").returncode == 0
    assert listed(site) == (["latest", "stable", "v0.1"], "stable")
    assert of(site, "stable")[1] == of(site, "v0.1")[1] == "two"

    assert publish(site, "main", "three").returncode == 0  # stable stays a release's
    assert (of(site, "latest")[1], of(site, "stable")[1]) == ("three", "two")

    assert publish(site, "v0.10.0", "four").returncode == 0
    assert publish(site, "v0.2.1", "five").returncode == 0  # of an older line
    assert listed(site) == (["latest", "stable", "v0.10", "v0.2", "v0.1"], "stable")
    assert (of(site, "stable")[1], of(site, "v0.2")[1]) == ("four", "five")

    assert publish(site, "v0.11.0rc1", "six").stdout.startswith("v0.11.0rc1 is a pre-release")
    assert of(site, "stable")[1] == "four"


def test_a_theme_that_says_it_otherwise_is_noticed(tmp_path):
    done = publish(tmp_path / "site", "main", page="")
    assert done.returncode == 1 and "has the theme changed?" in done.stderr


def test_the_theme_says_it_so():
    theme = pytest.importorskip("pydata_sphinx_theme")
    text = Path(theme.__file__).read_text(encoding="utf-8")
    assert "theme_switcher_version_match = '{version_match}'" in text
    conf = (ROOT / "docs" / "conf.py").read_text(encoding="utf-8")
    assert '"json_url": f"{SITE}/versions.json"' in conf

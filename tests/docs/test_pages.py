"""README and pages: their Python runs, commands, options and files exist, tables are whole."""

import re
import runpy
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

import dar_probe as dp
from dar_probe.cli import app

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
COMPATIBILITY = (DOCS / "reference" / "compatibility.md").read_text(encoding="utf-8")
PAGES = [
    README,
    *sorted(
        page
        for page in DOCS.rglob("*.md")
        if not {"_build", "generated"} & set(page.relative_to(DOCS).parts)
    ),
]
COMMANDS = get_command(app).commands


def blocks(page, language):
    """Return the code of a page in one language, in order; of Python, cells of notebooks too."""
    text = page.read_text(encoding="utf-8")
    if language == "python":
        language = r"(?:python|\{code-cell\}[^\n]*)"
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def names(pages):
    return [str(page.relative_to(ROOT)) for page in pages]


WITH_PYTHON = [page for page in PAGES[1:] if blocks(page, "python")]  # the README has its own
WITH_COMMANDS = [page for page in PAGES if blocks(page, "bash")]


@pytest.mark.parametrize("page", names(WITH_PYTHON))
def test_python_blocks_run(page, tmp_path, monkeypatch):
    (tmp_path / "fixtures").symlink_to(ROOT / "fixtures")
    home = tmp_path / "docs" / "tutorials" if "tutorials" in page else tmp_path
    home.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(home)
    monkeypatch.syspath_prepend(home)
    script = home / "page.py"  # a file: nnsight reads the source of traces
    script.write_text("\n".join(blocks(ROOT / page, "python")), encoding="utf-8")
    runpy.run_path(str(script))


@pytest.mark.parametrize("page", names(WITH_COMMANDS))
def test_commands_and_options_exist(page):
    for block in blocks(ROOT / page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for at, word in enumerate(words):
                if word.rpartition("/")[2] != "dar-probe" or at + 1 == len(words):
                    continue
                own = words[at + 1 :]
                if "&&" in own:
                    own = own[: own.index("&&")]
                if own[0].startswith("-"):
                    continue
                assert own[0] in COMMANDS, line
                known = {n for o in COMMANDS[own[0]].params for n in (*o.opts, *o.secondary_opts)}
                typed = {word.partition("=")[0] for word in own if word.startswith("--")}
                assert typed <= known | {"--help", "--debug"}, line


def test_links_and_files_exist(subtests):
    """Of the README; what pages link to is checked where the site is built."""
    prose = re.sub(r"^```.*?^```$", "", README.read_text(encoding="utf-8"), flags=re.M | re.S)
    targets = [t for t in re.findall(r"\]\(([^)]+)\)", prose) if "://" not in t]
    site = re.findall(r"\]\(https://dar-probe.github.io/dar-probe/stable/([^)]+)\.html\)", prose)
    targets += [f"docs/{page}.md" for page in site] + re.findall(r"`(tests/[^`]+)`", COMPATIBILITY)
    assert len(site) > 8
    for target in targets:
        with subtests.test(target=target):
            assert (ROOT / target).exists(), target


def test_the_readme_is_short():
    assert len(README.read_bytes()) <= 6_000


def test_dar_fits_fifteen_lines_of_somebody_elses_loop():
    text = (DOCS / "tutorials" / "routing-in-your-blocks.md").read_text(encoding="utf-8")
    code = text[text.index("class MyTransformer") :]
    body = re.split(r"\n(?=\S|```)", code)[0].strip()
    assert len(body.splitlines()) <= 15


def test_families_are_those_of_the_registry():
    """The table names what each family's title does; the option's help names them as typed."""
    from dar_probe.models.registry import FAMILIES

    table = COMPATIBILITY[COMPATIBILITY.index("| family | known by |") :].partition("\n\n")[0]
    rows = re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)[1:]
    titles = [title for family in FAMILIES for title in family.title.split(", ")]
    assert sorted(rows) == sorted([*titles, "diffusers folder"]), "docs/reference/compatibility.md"
    for command in COMMANDS.values():
        for option in command.params:
            if option.name == "family":
                named = re.findall(r"[a-z]+(?=,)", option.help.partition(": ")[2])
                known = sorted(family.name for family in FAMILIES)
                assert sorted(named) == known, "the help of --family in cli/shared/options.py"


def test_transformers_of_diffusers_are_counted():
    from tests.models.diffusers import others, tiny

    more = len(others.OTHERS)
    assert f"carries {more} more of the library's transformers" in COMPATIBILITY
    classes = {name for name, *_ in tiny.MODELS.values()}
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    assert f"{len(classes) + more} classes of diffusers" in index


def test_what_is_measured_names_every_variable():
    from dar_probe.results.schema import VARIABLES

    text = (DOCS / "explanation" / "what-is-measured.md").read_text(encoding="utf-8")
    assert [name for name in VARIABLES if f"`{name}`" not in text] == []


def test_the_first_analysis_is_the_readme_s(tmp_path, monkeypatch):
    """What the README shows of an analysis is there."""
    (tmp_path / "fixtures").symlink_to(ROOT / "fixtures")
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(README, "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 8
    scope = {}
    exec(compile(code, "readme.py", "exec"), scope)
    assert scope["gate"].dims == ("sample", "reader", "source")
    again = dp.open_analysis("dar-probe-out/mine")
    assert again.verdict.sentence == scope["analysis"].verdict.sentence

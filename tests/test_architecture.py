"""The contracts of imports (pyproject.toml), and what must never stand in the code."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"dar_probe": "dar_probe", "cli": "dar_probe.cli", "reports": "dar_probe.reports"}


def modules():
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join([package, *(p for p in parts if p != "__init__")]), path


def test_the_contracts_of_imports_are_kept():
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def python(code, *blocked):
    prelude = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {blocked!r}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
    )
    return subprocess.run(
        [sys.executable, "-c", prelude + code], capture_output=True, text=True, check=False
    )


def test_meaning_and_reports_run_without_torch():
    code = (
        "import dar_probe, dar_probe.results.metrics, dar_probe.results.verdict\n"
        "import dar_probe.results.store\n"
        "import dar_probe.reports.figures.registry, dar_probe.reports.pages.analysis\n"
        "import dar_probe.analysis\n"
        "import dar_probe.results.dataframe, dar_probe.reports.pages.notebook\n"
        "import dar_probe.reports.pages.comparison, dar_probe.reports.figures.differences\n"
        "dar_probe.open_analysis, dar_probe.Comparison, dar_probe.compare"
    )
    done = python(code, "torch", "nnsight")
    assert done.returncode == 0, done.stderr


def test_help_loads_neither_torch_nor_matplotlib():
    code = (
        "import sys\nfrom dar_probe.cli import app\n"
        "heavy = {'torch', 'matplotlib', 'xarray', 'pandas', 'plotly'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_no_unsafe_loading_and_no_bare_except(subtests):
    for name, path in modules():
        with subtests.test(module=name):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ExceptHandler):
                    assert node.type is not None, f"{name}: bare except"
                if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "load":
                    home = getattr(getattr(node.func, "value", None), "id", "")
                    settings = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
                    if home == "torch":
                        assert settings.get("weights_only") is True, name
                    if home == "np":
                        assert settings.get("allow_pickle", False) is False, name

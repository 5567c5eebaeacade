"""The contracts of imports (pyproject.toml), and what must never stand in the code."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MOST = 8  # parameters of a function
PACKAGES = (
    "accessor", "adapt", "analysis", "api", "checkpoints", "cli", "comparison", "diffusion",
    "errors", "files", "models", "probe", "reports", "results", "routing", "runtime", "sites",
    "study", "training",
)  # fmt: skip
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


def test_the_page_on_architecture_shows_the_contract(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "_ext")
    import architecture

    rows = re.findall(
        r"^\| (\d+) \| \[`(\w+)`\]\((\S+)\) \| (.+\.) \|$", architecture.layers(), re.M
    )
    assert sorted(name for _, name, _, _ in rows) == sorted(PACKAGES)
    assert [name for _, name, _, _ in rows][:: len(rows) - 1] == ["cli", "errors"]
    assert [int(number) for number, *_ in rows] == sorted((int(n) for n, *_ in rows), reverse=True)
    for _, name, address, job in rows:
        assert (ROOT / re.sub(r".+/main/", "", address)).exists(), name
        assert len(job) < 260, name
    for name in ("tables", "architecture"):
        sys.modules.pop(name, None)


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


def functions(tree, inside=""):
    """Yield (qualified name, function) of everything that is defined in a module."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield inside + node.name, node
        named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        yield from functions(node, f"{inside}{node.name}." if named else inside)


def parameters(function):
    found = function.args
    names = [one.arg for one in (*found.posonlyargs, *found.args, *found.kwonlyargs)]
    names += [one.arg for one in (found.vararg, found.kwarg) if one]
    return [name for name in names if name not in ("self", "cls")]


def has_flat_keywords(module, name, function):
    """Tell whether a function is what users call or type, or no call of Python's at all."""
    import dar_probe

    public = module == "dar_probe.api" and not name.startswith("_")
    method = name.partition(".")[0] in dar_probe.__all__ and "._" not in name
    command = module.startswith("dar_probe.cli.") and name == module.rpartition(".")[2]
    # The parameters of a kernel of Triton are addresses and sizes.
    kernel = any("triton.jit" in ast.unparse(one) for one in function.decorator_list)
    return public or method or command or kernel


@pytest.mark.parametrize("package", PACKAGES)
def test_no_function_takes_many_parameters(package):
    """What belongs together is one frozen object; only what users call has flat keywords."""
    wide = []
    for module, path in modules():
        if module.split(".")[1:2] != [package]:
            continue
        for name, function in functions(ast.parse(path.read_text(encoding="utf-8"))):
            if len(parameters(function)) > MOST and not has_flat_keywords(module, name, function):
                wide.append(f"{module}.{name}: {len(parameters(function))}")
    assert not wide, wide

"""The import contract, one meaning per file, and what must never stand in the code."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"dar_probe": "dar_probe", "cli": "dar_probe.cli", "reports": "dar_probe.reports"}

# A module may import only modules of its own or a lower layer.
LAYERS = [
    {"dar_probe.errors"},
    {
        "dar_probe.adapt",
        "dar_probe.cli.shared",
        "dar_probe.devices",
        "dar_probe.diffusion",
        "dar_probe.diffusion.objectives",
        "dar_probe.digits",
        "dar_probe.files",
        "dar_probe.files.atomic",
        "dar_probe.pooling",
        "dar_probe.ranks",
        "dar_probe.reports.draw",
        "dar_probe.reports.figures",
        "dar_probe.reports.pages",
        "dar_probe.reports.style",
        "dar_probe.results",
        "dar_probe.results.bootstrap",
        "dar_probe.results.schema",
        "dar_probe.results.study",
        "dar_probe.routing",
        "dar_probe.runtime",
        "dar_probe.runtime.device",
        "dar_probe.runtime.ranks",
        "dar_probe.schema",
    },
    {
        "dar_probe.arrays",
        "dar_probe.checkpoints",
        "dar_probe.checkpoints.memory_check",
        "dar_probe.checkpoints.state_dict",
        "dar_probe.files.analysis_folder",
        "dar_probe.files.arrays",
        "dar_probe.files.kinds",
        "dar_probe.files.safetensors_header",
        "dar_probe.importance",
        "dar_probe.metrics",
        "dar_probe.models",
        "dar_probe.output",
        "dar_probe.results.dataframe",
        "dar_probe.results.importance",
        "dar_probe.results.metrics",
        "dar_probe.results.store",
        "dar_probe.results.trajectory",
        "dar_probe.results.trajectory_store",
        "dar_probe.store",
        "dar_probe.tidy",
        "dar_probe.trajectory",
        "dar_probe.trajectory_file",
    },
    {
        "dar_probe.adapt.warm_start",
        "dar_probe.checkpoints.diffusers_folder",
        "dar_probe.diffusion.data",
        "dar_probe.diffusion.features",
        "dar_probe.diffusion.samplers",
        "dar_probe.effects",
        "dar_probe.matching",
        "dar_probe.models.conventions",
        "dar_probe.models.diffusers",
        "dar_probe.models.diffusers.conditioning",
        "dar_probe.models.diffusers.input_context",
        "dar_probe.models.diffusers.input_rules",
        "dar_probe.models.diffusers.inputs",
        "dar_probe.models.diffusers.latents",
        "dar_probe.models.diffusers.model",
        "dar_probe.models.diffusers.positions",
        "dar_probe.models.diffusers.sampling",
        "dar_probe.models.diffusers.scheduler",
        "dar_probe.models.diffusers.vae",
        "dar_probe.models.lightningdit",
        "dar_probe.models.mdt",
        "dar_probe.models.registry",
        "dar_probe.models.sit_family",
        "dar_probe.models.sit_layout",
        "dar_probe.models.udit",
        "dar_probe.models.uvit",
        "dar_probe.pairs",
        "dar_probe.results.comparability",
        "dar_probe.results.interventions",
        "dar_probe.results.paired",
        "dar_probe.results.sample_quality",
        "dar_probe.results.study.aggregate",
        "dar_probe.results.study.claims",
        "dar_probe.results.study.record",
        "dar_probe.results.study.summary",
        "dar_probe.results.verdict",
        "dar_probe.sites",
        "dar_probe.sites.autograd_entry",
        "dar_probe.sites.block_lists",
        "dar_probe.sites.boundaries",
        "dar_probe.sites.cross_check",
        "dar_probe.sites.discover",
        "dar_probe.sites.family",
        "dar_probe.sites.hooks",
        "dar_probe.sites.listing",
        "dar_probe.sites.stack",
        "dar_probe.sites.stream_detection",
        "dar_probe.sites.subject",
        "dar_probe.sites.tracing",
        "dar_probe.sites.unwrap",
        "dar_probe.study",
        "dar_probe.study.plan",
        "dar_probe.training",
        "dar_probe.training.config",
        "dar_probe.training.ema",
        "dar_probe.training.finetune",
        "dar_probe.training.repa",
        "dar_probe.training.run_folder",
        "dar_probe.training.tensorboard",
        "dar_probe.verdict",
    },
    {
        "dar_probe.dataset",
        "dar_probe.models.loading",
        "dar_probe.reports",
        "dar_probe.reports.draw.matplotlib",
        "dar_probe.reports.draw.plotly",
        "dar_probe.reports.figures.decodability",
        "dar_probe.reports.figures.differences",
        "dar_probe.reports.figures.dilution",
        "dar_probe.reports.figures.heatmap",
        "dar_probe.reports.figures.interactive",
        "dar_probe.reports.figures.interventions",
        "dar_probe.reports.figures.matrix",
        "dar_probe.reports.figures.matrix_screen",
        "dar_probe.reports.figures.registry",
        "dar_probe.reports.figures.router_entropy",
        "dar_probe.reports.figures.sources",
        "dar_probe.reports.figures.study_curves",
        "dar_probe.reports.figures.study_print",
        "dar_probe.reports.figures.study_ranking",
        "dar_probe.reports.figures.study_routes",
        "dar_probe.reports.figures.study_screen",
        "dar_probe.reports.figures.trajectory",
        "dar_probe.reports.figures.trajectory_screen",
        "dar_probe.reports.pages.alt_text",
        "dar_probe.reports.pages.analysis",
        "dar_probe.reports.pages.analysis_figures",
        "dar_probe.reports.pages.comparison",
        "dar_probe.reports.pages.definitions",
        "dar_probe.reports.pages.document",
        "dar_probe.reports.pages.headline",
        "dar_probe.reports.pages.junit",
        "dar_probe.reports.pages.notebook",
        "dar_probe.reports.pages.study",
        "dar_probe.reports.pages.tables",
        "dar_probe.reports.pages.wording",
        "dar_probe.reports.style.axis_links",
        "dar_probe.reports.style.palette",
        "dar_probe.reports.style.readers",
        "dar_probe.reports.style.sample_band",
        "dar_probe.reports.style.source_maps",
        "dar_probe.reports.style.still",
        "dar_probe.reports.style.text_metrics",
        "dar_probe.results.assemble",
        "dar_probe.results.fail_rule",
        "dar_probe.rule",
    },
    {
        "dar_probe.accessor",
        "dar_probe.analysis",
        "dar_probe.diffusion.noise_levels",
        "dar_probe.models.inspection",
        "dar_probe.plots",
        "dar_probe.probe",
        "dar_probe.probe.grid",
        "dar_probe.probe.inferred_inputs",
        "dar_probe.probe.nnsight_engine",
        "dar_probe.probe.self_check",
        "dar_probe.probe.sharding",
    },
    {"dar_probe.comparison", "dar_probe.probe.plan", "dar_probe.study.publish"},
    {
        "dar_probe.diffusion.generation",
        "dar_probe.probe.module_plan",
        "dar_probe.probe.monitor",
        "dar_probe.probe.runner",
        "dar_probe.training.loop",
        "dar_probe.training.monitoring",
    },
    {"dar_probe.api", "dar_probe.diffusion.evaluation", "dar_probe.probe.interactive"},
    {"dar_probe.probe.bench"},
    {"dar_probe.study.cost", "dar_probe.study.run"},
    {
        "dar_probe.cli",
        "dar_probe.cli.shared.console",
        "dar_probe.cli.shared.errors",
        "dar_probe.cli.shared.intervention_table",
        "dar_probe.cli.shared.options",
        "dar_probe.cli.shared.progress",
        "dar_probe.cli.shared.streams",
        "dar_probe.cli.shared.terminal",
    },
]


def modules():
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join([package, *(p for p in parts if p != "__init__")]), path


def imports(path):
    """Every module of dar_probe that a file imports at run time, inside functions too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and getattr(test.test, "id", "") == "TYPE_CHECKING"
        for node in ast.walk(test)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(name):
    """Index of the layer of the longest listed prefix; None for other packages."""
    parts = name.split(".")
    for length in range(len(parts), 1, -1):
        prefix = ".".join(parts[:length])
        for index, names in enumerate(LAYERS):
            if prefix in names:
                return index
    return None


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=[name for name, _ in modules()])
def test_imports_point_down(name, path):
    own = layer(name)
    if own is None:
        assert name == "dar_probe"  # the lazy face imports nothing but errors on its own
        return
    for other in imports(path):
        found = layer(other)
        assert found is None or found <= own, f"{name} imports {other}"


def test_nnsight_is_imported_in_one_place_only():
    users = [
        name for name, path in modules() if any(i.split(".")[0] == "nnsight" for i in imports(path))
    ]
    assert set(users) <= {"dar_probe.probe.nnsight_engine"}


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
        "import dar_probe.reports.figures.registry, dar_probe.reports.pages.analysis, dar_probe.analysis\n"
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


def test_no_unsafe_loading_and_no_bare_except():
    for name, path in modules():
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

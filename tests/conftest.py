"""The lanes of the tests, the order in which workers take them, and what tests share."""

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # no test turns to a network
os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and for the commands that tests run

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

import dar_probe as dp
from tests.helpers.undrawn import lightened

# A busy machine is no fault of the code: how long an example takes is for tests/bench to print.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

HERE = Path(__file__).resolve().parent
FIXTURES = HERE.parent / "fixtures"

# Every marker, by folder, file or test; pyproject.toml says what each means. A test has the markers
# of all rows that hold it. With two workers the longest work must not come last, so the rows are
# also an order: tests of the first rows start first, and tests of no row come after them.
LANES = {
    "test_style.py::test_mypy": "slow",
    "hostile/test_kill.py": "slow subprocess",
    "hostile/test_exit_codes.py::test_what_cannot_work": "slow",
    "routing/test_schemes_trained.py": "slow",
    "bench/test_bench_scripts.py": "slow",
    "supply/test_network.py": "slow subprocess network_free extras",
    "journeys/test_ablate.py": "slow",
    "journeys/test_cli.py": "slow subprocess",
    "models/test_family_cli.py": "slow",
    "hostile/test_environment.py": "slow subprocess",
    "hostile/test_storage.py": "slow",
    "reports/test_browser.py": "slow browser extras lowest",
    "reports/test_print.py::test_no_text": "slow",
    "probe/test_sharding.py::test_datasets": "slow",
    "probe/test_sharding.py::test_a_job": "slow",
    "probe/test_sharding.py::test_the_command": "slow distributed subprocess",
    "probe/test_sharding.py::test_a_rank_that_dies": "slow subprocess",
    "probe/test_sharding.py": "distributed",
    "training/test_ranks.py": "slow distributed subprocess",
    "training/test_loop.py::test_killed": "slow",
    "training/test_loop.py::test_every_path": "slow",
    "training/test_loop.py::test_it_learns": "slow",
    "models/test_udit.py": "slow",
    "docs/test_site.py": "slow browser extras",
    "docs/test_pages.py::test_python_blocks": "slow extras",
    "supply/test_wheel.py": "slow subprocess lowest",
    "journeys/test_examples.py::test_the_example": "slow",
    "journeys/test_audit_command.py": "slow",
    "journeys/test_output_choices.py": "slow",
    "models/diffusers/test_analyze.py": "slow lowest",  # diffusers, accelerate
    "routing/test_kernels.py": "slow subprocess extras",
    "diffusion/test_evaluation.py": "slow",
    "diffusion/test_samplers.py::test_fresh_noise": "slow",
    "diffusion/test_edm.py::test_fresh_noise": "slow",
    "probe/test_memory.py": "slow",
    "checkpoints/test_sizes.py": "slow subprocess",
    "checkpoints/test_adapters.py::test_the_line": "slow subprocess extras",
    "models/diffusers/test_single_file.py::test_it_is": "slow",
    "models/diffusers/test_in_files.py": "slow",
    "checkpoints/test_peek.py::test_reading_costs": "slow subprocess",
    "hostile/test_publishing.py": "slow",
    "hostile/test_fuzz.py": "slow",
    "hostile/test_exit_codes.py::test_the_law": "slow",
    "models/test_own.py": "slow",
    "models/test_time.py": "slow",
    "models/test_family_ablate.py": "slow",
    "training/test_monitoring.py": "slow",
    "training/test_finetune.py::test_audit_judges": "slow",
    "cli/test_terminal.py::test_the_bar": "slow subprocess",
    "cli/test_figures_command.py::test_one_analysis": "slow",
    "results/test_store.py::test_killed": "slow",
    "results/test_trajectory.py::test_checkpoints": "slow",
    "sites/test_unwrap.py::test_compiled": "slow",
    "sites/test_unwrap.py::test_a_compiled": "slow",
    "files/test_analysis_folder.py::test_analysis_saves": "slow",
    "reports/test_figures.py::test_equal_datasets": "slow",
    "test_fixtures.py": "slow",
    "study/test_reproduce.py::test_a_run": "slow",
    "study/test_reproduce.py::test_prices": "slow",
    "study/test_reproduce.py::test_python": "slow",
    "routing/test_schemes_listed.py::test_a_new_scheme": "slow subprocess",
    "probe/test_nnsight_engine.py::test_importing": "slow subprocess",
    "reports/test_page.py::test_chromium_draws": "slow",
    "reports/test_page.py::test_the_largest": "slow",
    "reports/test_figures.py::test_write_all": "slow",
    "reports/test_readers_figures.py::test_the_other_figures": "slow",
    "test_comparison.py::test_a_comparison_needs": "slow subprocess",
    "test_comparison.py::test_chromium": "slow",
    "probe/test_nnsight_engine.py::test_both_engines": "slow",
    "probe/test_decoding.py::test_the_interval": "slow",
    "probe/test_monitor.py::test_a_resumed": "slow",
    "routing/test_dar.py::test_source_reads": "slow",
    "results/test_store.py::test_random_damage": "slow",
    "results/test_store.py::test_little_on_disk": "slow",
    "checkpoints/test_peek.py::test_a_look": "slow",
    "cli/test_figures_command.py::test_several": "slow",
    "cli/test_figures_command.py::test_equal_names": "slow",
    "training/test_finetune.py::test_the_toy": "slow",
    "reports/test_every_figure.py": "slow",
    "mutation/test_mutation.py": "slow subprocess",
    "results/test_trajectory_store.py": "slow",
    "models/test_analyze.py": "slow",
    "models/test_hostile_families.py::test_a_model_of_one_s_own": "slow",
    "cli/test_announcement.py": "slow",
    "cli/test_terminal.py::test_a_dumb": "slow",
    "cli/test_terminal.py::test_a_log": "slow",
    "adapt/test_warm_start.py": "slow",
    "probe/test_bench.py": "slow",
    "probe/test_monitor.py": "slow",
    "journeys/test_examples.py::test_every_command": "slow",
    "journeys/test_bench_command.py": "slow",
    "hostile/test_hostile_checkpoints.py::test_any_bytes": "slow",
    "test_comparison.py::test_json": "slow",
    "test_comparison.py::test_out_writes": "slow",
    "study/test_reproduce.py::test_only_the_price": "slow",
    "results/test_store.py::test_reading": "slow",
    "results/test_paired.py::test_intervals_hold": "slow",
    "results/test_interventions.py::test_figures": "slow",
    "checkpoints/test_peek.py::test_no_header": "slow",
    "models/diffusers/test_folder.py::test_nothing_imports": "slow",
    "probe/test_eager.py": "slow subprocess",
    "journeys/test_editors.py": "slow subprocess extras",
    # The lint lane.
    "test_style.py": "lint subprocess extras",
    "test_style.py::test_ruff": "lowest",
    "test_architecture.py": "lint subprocess",
    "test_architecture.py::test_the_contracts": "extras",
    # What is quick.
    "checkpoints/test_peek.py": "subprocess",
    "cli/test_terminal.py": "subprocess lowest",
    "results/test_store.py": "subprocess lowest",
    "runtime/test_system.py": "subprocess",
    "probe/test_inferred_inputs.py": "extras",
    "checkpoints/test_hub.py": "extras",
    "diffusion/test_samplers.py::test_dopri5": "extras",
    "diffusion/test_edm.py::test_dopri5": "extras",
    "reports/test_page.py": "browser lowest",
    "test_comparison.py": "browser",
    "models/diffusers": "extras",
    "test_compat.py::test_a_class": "extras",
    "models/test_lora.py": "extras lowest",  # peft
    "models/test_offload.py": "extras",
    "probe/test_placing.py::test_a_module_is": "extras",  # accelerate
    "probe/test_placing.py::test_a_module_in_host": "extras gpu",
    # The lowest versions of dependencies: here are the files that lean on one of them most.
    "results/test_metrics.py": "lowest",  # numpy, xarray
    "results/test_dataframe.py": "lowest",  # pandas, seaborn
    "results/test_intervals.py": "lowest",  # scipy
    "reports/test_figures.py": "lowest",  # matplotlib
    "reports/test_interactive.py": "lowest",  # plotly
    "diffusion/test_data.py": "lowest",  # pillow, safetensors
    "checkpoints/test_reader.py": "lowest",  # torch, safetensors
    "cli/test_figures_command.py": "lowest",  # typer
    "probe/test_nnsight_engine.py": "lowest",  # nnsight
    "laws/test_probe_laws.py": "lowest",  # torch, hypothesis
}

# Files of which every test is long and shares nothing with the others: workers take them one by
# one. Of any other file one worker runs all, so that what its tests share is made once.
APART = {
    "bench/test_bench_scripts.py",
    "hostile/test_exit_codes.py",
    "hostile/test_kill.py",
    "models/test_family_cli.py",
    "probe/test_sharding.py",
    "routing/test_schemes_trained.py",
    "test_style.py",
    "training/test_ranks.py",
}


def holds(row: str, path: str, test: str = "") -> bool:
    """Tell whether a row of ``LANES`` holds a file, given relative to this folder, or its test."""
    file, _, prefix = row.partition("::")
    return (path == file or path.startswith(f"{file}/")) and test.startswith(prefix)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark and order the tests; where rows are equal, the random order stays."""
    names = list(LANES.values())
    places: dict[str, int] = {}
    for item in items:
        path = item.path.relative_to(HERE).as_posix()
        rows = [at for at, row in enumerate(LANES) if holds(row, path, item.name)]
        for at in rows:
            for name in names[at].split():
                item.add_marker(name)
        unit = scope(item.nodeid)
        places[unit] = min([*rows, places.get(unit, len(LANES))])
    items.sort(key=lambda item: places[scope(item.nodeid)])


def pytest_collection_finish() -> None:
    """Let the garbage collector forget what was imported: else it looks through it all the time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let the end of the process collect everything; triton reports what is left as leaks."""
    gc.unfreeze()


def scope(nodeid: str) -> str:
    """Return what one worker runs as a whole: a file, or of a file in ``APART`` a test."""
    path = nodeid.partition("::")[0]
    return nodeid if path.removeprefix(f"{HERE.name}/") in APART else path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give workers these units in this order, whatever ``--dist`` says.

    ``--dist loadgroup`` would, but xdist 3.8 writes groups into an attribute that pytest 9.2 does
    not read, and then every test is a unit of its own.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Units(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return scope(nodeid)

    config.option.loadscopereorder = False  # else the files of most tests come first
    return Units(config, log)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out files that ``-m "not extras"`` deselects: what they import may be missing."""
    if "not extras" not in config.option.markexpr or not collection_path.is_relative_to(HERE):
        return None
    path = collection_path.relative_to(HERE).as_posix()
    rows = (row for row, names in LANES.items() if "extras" in names.split() and "::" not in row)
    return any(holds(row, path) for row in rows) or None


@pytest.fixture
def undrawn() -> Iterator[None]:
    """No pages and no figures: what is measured and kept is the point."""
    with lightened():
        yield


@pytest.fixture(scope="session")
def measured() -> Callable[[str], dp.Analysis]:
    """Return a function from the name of a fixture to its analysis, 4 levels and 16 samples."""

    @cache
    def of(name: str) -> dp.Analysis:
        return dp.analyze(FIXTURES / f"{name}.pt", noise_levels=4, samples=16)

    return of

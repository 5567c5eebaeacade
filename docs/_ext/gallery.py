"""The directive ``{drawn} NAME``: code, and the figure that it makes while the site is built.

All code of the gallery runs before any page is read, so that each page can show every figure. A
figure is drawn again where its code has changed; names of ``PREPARED`` are there when it is run.
"""

import hashlib
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

import dar_probe as dp

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "fixtures"
BLOCKS = re.compile(r"^```\{drawn\} (\S+)\n(.*?)^```$", re.M | re.S)


@cache
def measured(name: str) -> "dp.Analysis":
    """Return the analysis of a shipped checkpoint."""
    return dp.analyze(FIXTURES / f"{name}.pt", data="digits", noise_levels=5, samples=8)


@cache
def ablated() -> "dp.Analysis":
    """Return what became of the residual model with single blocks skipped."""
    return dp.ablate(
        FIXTURES / "digits-residual.pt", data="digits", noise_levels=2, samples=4, kinds=["block"]
    )


def followed(folder: Path) -> "dp.Analysis":
    """Return the analysis of a small model over its first training steps."""
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    dp.train(
        out=run, depth=4, width=32, steps=60, batch_size=32, warmup=10, probe_every=15,
        probe_samples=4, probe_levels=3, validation_samples=16,
    )  # fmt: skip
    return dp.open_analysis(run / "trajectory.nc")


def prepared(folder: Path) -> dict[str, Callable[[], Any]]:
    """Return by name what the code of the gallery starts from."""
    return {
        "residual": lambda: measured("digits-residual"),
        "dar": lambda: measured("digits-dar-static"),
        "ablation": ablated,
        "run": lambda: followed(folder),
    }


class Names(dict[str, Any]):
    """Names for code; what is prepared is made when it is first asked for."""

    def __init__(self, makers: dict[str, Callable[[], Any]]) -> None:
        super().__init__()
        self._makers = makers

    def __missing__(self, name: str) -> Any:
        """Make it."""
        self[name] = self._makers[name]()
        return self[name]


def draw(app: Any) -> None:
    """Run the code of all pages; figures go to _build/figures, report pages to _build/extra."""
    source = Path(app.srcdir)
    target, extra = source / "_build" / "figures", source / "_build" / "extra" / "reports"
    target.mkdir(parents=True, exist_ok=True)
    names = Names(prepared(source / "_build"))
    for page in sorted((source / "gallery").glob("*.md")):
        for name, code in BLOCKS.findall(page.read_text(encoding="utf-8")):
            picture, mark = target / f"{name}.png", target / f"{name}.code"
            digest = hashlib.sha256((dp.__version__ + code).encode()).hexdigest()
            if picture.exists() and mark.exists() and mark.read_text() == digest:
                continue
            exec(code, globals(), names)
            names.pop("figure").savefig(picture, dpi=150)
            mark.write_text(digest)
    if not extra.exists():
        report_pages(extra, names)


def report_pages(target: Path, names: Names) -> None:
    """Write one page of each kind, whole, as users get them."""
    from dar_probe.study.publish import publish

    made = target.with_name("making")
    shutil.rmtree(made, ignore_errors=True)
    names["residual"].save(made / "analysis", figures=False)
    names["dar"].save(made / "analysis-dar", figures=False)
    names["ablation"].save(made / "ablation", figures=False)
    dp.compare(names["residual"], names["dar"]).save(made / "comparison")
    records = ROOT / "reports" / "gallery" / "reproduce" / "runs"
    shutil.copytree(records, made / "study" / "runs")
    publish(made / "study")
    target.mkdir(parents=True)
    for folder in sorted(made.iterdir()):
        (page,) = folder.glob("*.html")
        shutil.copy(page, target / f"{folder.name}.html")
    shutil.rmtree(made)


class Drawn(SphinxDirective):
    """Shows a figure, and the code that made it."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return both."""
        name, code = self.arguments[0], "\n".join(self.content)
        block = nodes.literal_block(code, code, language="python")
        image = nodes.image(uri=f"/_build/figures/{name}.png", alt=f"the figure {name}")
        image["classes"].append("dark-light")
        return [image, block]


def setup(app: Any) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("drawn", Drawn)
    app.connect("builder-inited", draw)
    return {"parallel_read_safe": True}

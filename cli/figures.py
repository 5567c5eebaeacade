"""``dar-probe figures``: the figures of finished analyses, for a paper. Runs without torch."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict

import typer

from dar_probe.cli.shared import options, panels, startup
from dar_probe.cli.shared import options as shared

if TYPE_CHECKING:
    import xarray as xr

    from dar_probe.reports.figures.description import Figure
    from dar_probe.reports.figures.registry import Options

    Named = tuple[str, xr.Dataset]
    Shown = tuple[str, Figure]


class Look(TypedDict):
    """What the figures say themselves; captions say it in any case."""

    titles: bool
    notes: bool


def figures(
    analyses: Annotated[
        list[Path],
        typer.Argument(
            help="Each an analysis.nc, or its folder.", metavar="ANALYSIS...", show_default=False
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="Folder to write to; other files in it stay.",
            metavar="DIR",
            rich_help_panel=panels.OUTPUT,
        ),
    ] = Path("dar-probe-out/figures"),
    formats: Annotated[
        str,
        typer.Option(
            "--formats",
            "--format",
            help="Some of png, pdf and svg, with commas.",
            metavar="NAMES",
            rich_help_panel=panels.OUTPUT,
            autocompletion=shared.one_of("png", "pdf", "svg"),
        ),
    ] = "png,pdf,svg",
    width: Annotated[
        Literal["one", "two"],
        typer.Option(
            help="One column (3.25 in) or two (6.75 in); text stays the same size.",
            metavar="one|two",
            rich_help_panel=panels.FIGURES,
        ),
    ] = "two",
    only: Annotated[
        str | None,
        typer.Option(
            help="Some, with commas, of dilution, sources, matrix, spread, decodability, "
            "samples, trajectory, interventions, heatmap.",
            metavar="NAMES",
            show_default="all that the data allow",
            rich_help_panel=panels.FIGURES,
        ),
    ] = None,
    variable: Annotated[
        list[str] | None,
        typer.Option(
            help="Variable to draw as a heatmap; may be repeated.",
            metavar="NAME",
            show_default="as analyze does",
            rich_help_panel=panels.FIGURES,
        ),
    ] = None,
    noise_level: Annotated[
        float | None,
        typer.Option(
            help="Level of matrix, the nearest measured one.",
            metavar="LEVEL",
            show_default="the middle one",
            rich_help_panel=panels.FIGURES,
        ),
    ] = None,
    shallow: Annotated[
        int | None,
        typer.Option(
            help="Shallow block of sources, B+1 for the head.",
            metavar="N",
            show_default="about B/4",
            rich_help_panel=panels.FIGURES,
        ),
    ] = None,
    deep: Annotated[
        int | None,
        typer.Option(
            help="Deep block of sources.",
            metavar="N",
            show_default="about 3B/4",
            rich_help_panel=panels.FIGURES,
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            help="Only readers of this kind, e.g. attention, in matrix, spread, decodability.",
            metavar="NAME",
            show_default="readers of all kinds",
            rich_help_panel=panels.FIGURES,
        ),
    ] = None,
    no_titles: Annotated[
        bool,
        typer.Option(
            "--no-titles",
            help="Leave out headings and the titles of panels.",
            rich_help_panel=panels.FIGURES,
        ),
    ] = False,
    no_notes: Annotated[
        bool,
        typer.Option(
            "--no-notes",
            help="Leave out the sentences below figures.",
            rich_help_panel=panels.FIGURES,
        ),
    ] = False,
    captions: Annotated[
        bool,
        typer.Option(
            "--captions",
            help="Also write captions.txt, and captions.tex with figures for LaTeX.",
            rich_help_panel=panels.OUTPUT,
        ),
    ] = False,
    names: options.Names = None,
) -> None:
    """Write the figures of finished analyses, fonts embedded; equal data give equal bytes.

    dilution shows all analyses in one overlay. The others are written once for each analysis,
    with its number before their names where there are several.

    Example: dar-probe figures dar-probe-out/digits-residual --only dilution,sources --width one
    """
    with startup.imports():
        from dar_probe.cli.shared import terminal
        from dar_probe.cli.shared.names import some_of
        from dar_probe.files.atomic import check_place
        from dar_probe.reports.draw import matplotlib
        from dar_probe.reports.figures.registry import FIGURES, Options

    suffixes = some_of(formats, matplotlib.FORMATS, "format")
    wanted = list(FIGURES) if only is None else list(some_of(only, FIGURES, "figure"))
    chosen = Options(
        width=width,
        noise_level=noise_level,
        shallow=shallow,
        deep=deep,
        kind=kind,
        variables=tuple(name for text in variable or () for name in text.split(",")),
    )
    look: Look = {"titles": not no_titles, "notes": not no_notes}
    check_place(out)
    named = _read(analyses, None if names is None else names.split(","))
    shown = _describe(named, wanted, chosen, asked=only is not None)
    for path in _write(shown, out, suffixes, look, captions=captions):
        typer.echo(terminal.printable(str(path)))


def _read(paths: list[Path], names: list[str] | None = None) -> list["Named"]:
    """Return (name, dataset) pairs, names numbered where two are equal."""
    from dar_probe.analysis import open_analysis
    from dar_probe.results.paired import named

    opened = [open_analysis(path) for path in paths]
    called = named([a.name for a in opened], names)
    return list(zip(called, [a.whole for a in opened], strict=True))


def _describe(
    named: list["Named"], wanted: list[str], options: "Options", *, asked: bool
) -> list["Shown"]:
    """Describe everything before anything is written: (name of the file without suffix, figure).

    Raises:
        ProbeError: none of the analyses can give a figure, or a heatmap, that was asked for.
    """
    from dar_probe.errors import ProbeError
    from dar_probe.reports.figures import dilution, registry
    from dar_probe.results.streams import single

    _check_kind(named, options)
    shown = []
    for stem in registry.stems(wanted, options):
        if stem == "dilution":
            lines = [(name, single(ds)) for name, ds in named]
            shown.append((stem, dilution.dilution(lines, width=options.width)))
            continue
        reasons = [registry.lacks(ds, stem, options) for _, ds in named]
        explicit = asked or (stem.startswith(registry.HEATMAP) and options.variables)
        if explicit and all(reasons):
            raise ProbeError(f"no figure {stem!r}: {reasons[0]}")
        for number, (reason, (name, ds)) in enumerate(zip(reasons, named, strict=True), 1):
            if not reason:
                prefix = f"{number:02d}-" if len(named) > 1 else ""
                shown.append((prefix + stem, registry.describe(ds, stem, options, name=name)))
    return shown


def _check_kind(named: list["Named"], options: "Options") -> None:
    """Raise UsageError where no analysis has a reader of the wanted kind."""
    from dar_probe.reports.style import readers

    if options.kind is not None and not any(
        options.kind in ds["reader_kind"].values for _, ds in named
    ):
        readers.kinds(named[0][1], options.kind)


def _write(
    shown: list["Shown"], folder: Path, suffixes: tuple[str, ...], look: Look, *, captions: bool
) -> Iterator[Path]:
    """Draw and write one figure after the other, and yield the path of each file."""
    from dar_probe.files.atomic import make_folder, write_atomically, write_text
    from dar_probe.reports import text_tables
    from dar_probe.reports.draw import matplotlib
    from dar_probe.reports.figures import caption

    make_folder(folder, folder, "choose another --out")
    for stem, described in shown:
        figure = matplotlib.draw(caption.without(described, **look))
        for suffix in suffixes:
            path = folder / f"{stem}.{suffix}"
            write_atomically(path, partial(matplotlib.save, figure, form=suffix))
            yield path
    if captions:
        said = [(stem, caption.caption(described)) for stem, described in shown]
        texts = {
            "captions.txt": "\n".join(f"{stem}: {text}\n" for stem, text in said),
            "captions.tex": "\n".join(text_tables.latex_figure(*pair) for pair in said),
        }
        for name, text in texts.items():
            write_text(folder / name, text)
            yield folder / name

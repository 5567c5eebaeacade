"""The page, the figures and the numbers of a study, from the records that are there."""

import json
from functools import partial
from pathlib import Path
from typing import Any

from dar_probe.files import atomic
from dar_probe.results.study import aggregate, summary
from dar_probe.study.plan import SCALES


def publish(out: Path) -> dict[str, Any]:
    """Write reproduce.html, reproduce.json and figures/ into ``out``; return what the JSON holds.

    Raises:
        CheckpointError: a record cannot be read.
        UsageError: there is none, or they do not belong together.
    """
    from dar_probe.reports.draw import matplotlib
    from dar_probe.reports.figures import study_curves, study_ranking, study_routes
    from dar_probe.reports.pages import study

    records = aggregate.read_records(out / "runs")
    scale = SCALES.get(records[0].scale)
    order = [entry.name for entry in scale.entries] if scale else []
    found = aggregate.Results(records, order)
    drawings = study_curves.drawings(found)
    atomic.write_text(out / "reproduce.html", study.render(found, drawings))
    atomic.make_folder(out / "figures", out / "figures")
    shown = {drawing.name: drawing.figure for drawing in drawings}
    if ranking := study_ranking.ranking(found):
        shown["ranking"] = study_ranking.figure(ranking)
    if routes := study_routes.maps(found):
        shown["routes"] = study_routes.figure(routes)
    for name, figure in shown.items():
        made = matplotlib.draw(figure)
        for suffix in ("png", "pdf"):
            write = partial(matplotlib.save, made, form=suffix)
            atomic.write_atomically(out / "figures" / f"{name}.{suffix}", write)
    told = summary.plain(found)
    atomic.write_text(out / "reproduce.json", json.dumps(told, indent=2, allow_nan=False) + "\n")
    return told

"""Measures a tiny model of every family and of every class of diffusers that is carried.

    python tests/compat.py              # all of them, to docs/reference/compatibility.json
    python tests/compat.py --only sd3   # one, by its name or that of its class; writes nothing
    python tests/compat.py --check      # all of them, against that file; writes nothing

Each model goes the way of a user's file: written to disk, loaded, its sites told or found. Two
things are then measured once more. Of every write: how far what its branch returns, times its gate,
is from what the stream gained. Of every state between blocks: how far its size and that of its
gradient are from what plain hooks on the same module and autograd say, by this file's own
arithmetic. A difference above ``MOST`` makes the exit code 1.
"""

import argparse
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a script, tests is no package on the path

from dar_probe.diffusion.data import Data  # noqa: E402
from dar_probe.diffusion.objective import Objective  # noqa: E402
from dar_probe.errors import DarProbeError  # noqa: E402
from dar_probe.models.loading import Loaded, load_checkpoint  # noqa: E402
from dar_probe.models.options import CheckpointOptions  # noqa: E402
from dar_probe.probe import plan, self_check  # noqa: E402
from dar_probe.probe.measure import SECOND, measure  # noqa: E402
from dar_probe.probe.options import GridOptions  # noqa: E402
from dar_probe.probe.recorder import untouched  # noqa: E402
from dar_probe.runtime.version import __version__  # noqa: E402
from dar_probe.sites import cross_check  # noqa: E402
from dar_probe.sites.subject import Reader, Subject, View  # noqa: E402
from tests.models import files  # noqa: E402
from tests.models.diffusers import others, tiny  # noqa: E402

TABLE = ROOT / "docs" / "reference" / "compatibility.json"
SAMPLES, LEVELS = 2, [0.3, 0.7]
# Classes that do something in float32 whatever their weights are: norms read a copy of the stream,
# or the class makes gates, inputs or its last state in that type.
SINGLE_PRECISION = {
    "wan",
    "AnyFlowTransformer3DModel",
    "ChronoEditTransformer3DModel",
    "ErnieImageTransformer2DModel",
    "HeliosTransformer3DModel",
    "Kandinsky5Transformer3DModel",
    "Kandinsky6Transformer3DModel",
    "LongCatAudioDiTTransformer",
    "MotifVideoTransformer3DModel",
    "SkyReelsV2Transformer3DModel",
    "WanVACETransformer3DModel",
}
# Largest differences that pass. Measured on an AMD EPYC: 7.4e-15, 9.7e-16 and 2.2e-14 in float64;
# 5.7e-7, 1.0e-7 and 1.4e-7 in float32.
MOST = {
    "float64": {"write": 5e-14, "rms": 5e-15, "grad_rms": 1e-13},
    "float32": {"write": 4e-6, "rms": 1e-6, "grad_rms": 1e-6},
}
Row = dict[str, Any]


def names() -> dict[str, str]:
    """Return the kind of every model that is known here, by its name."""
    kinds = dict.fromkeys(files.CASES, "family")
    return kinds | dict.fromkeys([*tiny.MODELS, *sorted(others.OTHERS)], "diffusers class")


def class_of(name: str) -> str:
    """Return the family, or the class of diffusers, of a name."""
    if name in files.CASES:
        return files.CASES[name][2]
    return tiny.MODELS[name][0] if name in tiny.MODELS else name


def row(name: str, folder: Path) -> Row:
    """Write a tiny model into a folder, measure it, and return what stands in the table of it."""
    loaded = load(name, folder)
    task, missed = prepared(loaded)
    subject = task.subject
    streams = {"image": subject} | ({"text": subject.second} if subject.second else {})
    missed += [write.difference for write in branches(task)]
    agreed = [one for one in missed if one <= cross_check.AGREES]
    found = {
        "name": name,
        "kind": names()[name],
        "class": loaded.identified.family,
        "granularity": subject.granularity,
        "streams": {title: sizes(one) for title, one in streams.items()},
        **clock(loaded.objective),
        "clock_assumed": any("the clock of" in said for said in loaded.assumptions),
        "dtype": task.manifest["dtype"],
        "writes": {
            "sublayers": sum(len(one.readers) - 1 for one in streams.values()),
            "agree": len(agreed),
            "largest": short(max(agreed, default=None)),
        },
        "states": states(task, streams),
    }
    blind = subject.facts.get("blind")
    return found | ({"left_out": f"gradients and gates: {blind}"} if blind else {})


def load(name: str, folder: Path) -> Loaded:
    """Write the tiny model of a name into a folder and load it as a user's command does."""
    kind = "float32" if name in SINGLE_PRECISION else "float64"
    if name in files.CASES:
        file = files.write(name, folder)
        options = CheckpointOptions(path=file.path, heads=file.heads, dtype=kind)
        return load_checkpoint(options, shape=tuple(file.latents.shape[1:]))
    if name in tiny.MODELS:
        home, shape = tiny.save(name, folder / name), tiny.SHAPES.get(name)
    else:
        import diffusers

        home, shape = folder / name, None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = getattr(diffusers, name)(**others.OTHERS[name])
            tiny.randomise(made).eval().save_pretrained(home)
    return load_checkpoint(CheckpointOptions(path=home, dtype=kind), shape=shape)


def prepared(loaded: Loaded) -> tuple[plan.Task, list[float]]:
    """Return the task of a model, of both streams where it has two.

    And what discovery says of each write: the share of it that its branch's own output misses.
    """
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(SAMPLES, *loaded.identified.shape, generator=generator)
    ids = torch.arange(SAMPLES)
    rows = Data(
        name="latents:drawn", description="", latents=latents,
        labels=ids % max(loaded.identified.num_classes, 1), ids=ids,
    )  # fmt: skip
    begin = partial(plan.of_rows, loaded, rows, np.array(LEVELS))
    with noted() as missed:
        try:
            return begin(GridOptions(stream="all")), missed
        except DarProbeError:  # it has one stream, or fails once more
            missed.clear()
            return begin(GridOptions()), missed


@contextmanager
def noted() -> Iterator[list[float]]:
    """Collect what ``cross_check.difference`` returns while sites are looked for."""
    found: list[float] = []
    own = cross_check.difference

    def watched(*args: Any) -> float | None:
        missed = own(*args)
        found.extend([] if missed is None else [missed])
        return missed

    with mock.patch.object(cross_check, "difference", watched):
        yield found


def branches(task: plan.Task) -> list[self_check.Write]:
    """Return what the proof of a family's sites measures; none where sites were discovered."""
    ids, levels = cells(task)
    with untouched(task.subject.model):
        return self_check.writes(task.subject, *task.batch(ids, levels))


def cells(task: plan.Task) -> tuple[Tensor, Tensor]:
    """Return the sample and the noise level of every cell."""
    ids, levels = torch.arange(SAMPLES), torch.tensor(task.grid.levels, dtype=torch.float64)
    return ids.repeat(len(levels)), levels.repeat_interleave(SAMPLES)


def sizes(subject: Subject) -> dict[str, int]:
    """Count what was found of a stream."""
    return {
        "blocks": len(subject.block_readers) - 1,
        "sublayers": len(subject.readers) - 1,
        "fusions": sum(source.kind == "fusion" for source in subject.sources),
    }


def clock(objective: Objective) -> dict[str, str]:
    """Return what a model's objective tells its model of the time, and asks of it."""
    ends = objective.model_time(objective.reached(torch.tensor([0.0, 1.0], dtype=torch.float64)))
    middle = objective.reached(torch.tensor([0.5], dtype=torch.float64))
    none, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    data, noise = (float(objective.target(*pair, middle)) for pair in ((one, none), (none, one)))
    known = {
        (1, -1): "data - noise", (-1, 1): "noise - data", (1, 0): "data", (0, 1): "noise",
    }  # fmt: skip
    mixed = f"{noise:.2f} noise {'-' if data < 0 else '+'} {abs(data):.2f} data at s = 0.5"
    return {
        "objective": objective.name,
        "clock": " to ".join(f"{float(end):.4g}" for end in ends),
        "prediction": known.get((round(data, 6), round(noise, 6)), mixed),
    }


def states(task: plan.Task, streams: dict[str, Subject]) -> dict[str, float | None]:
    """Return the largest relative differences of rms and grad_rms from plain hooks' and autograd's.

    Gradients that a dataset leaves out are None.
    """
    ids, levels = cells(task)
    with untouched(task.subject.model):
        found = measure(task.subject, task.batch, task.loss, ids, levels)
    worst = {"rms": 0.0, "grad_rms": 0.0}
    for title, subject in streams.items():
        prefix = SECOND if title == "text" else ""
        for name, expected in watched(task, subject, ids, levels).items():
            error = (found[prefix + name].double() - expected).abs() / expected
            assert error.shape == expected.shape and bool(error.isfinite().all()), (title, name)
            worst[name] = max(worst[name], float(error.max()))
    if task.subject.facts.get("blind"):
        return {"rms": short(worst["rms"]), "grad_rms": None}
    return {name: short(value) for name, value in worst.items()}


def short(value: float | None) -> float | None:
    """Return a difference with two digits: the others are another machine's."""
    return None if value is None else float(f"{value:.1e}")


def watched(task: plan.Task, subject: Subject, ids: Tensor, levels: Tensor) -> dict[str, Tensor]:
    """Return rms and grad_rms (cells, B+1) of the states that hooks of torch alone see."""
    places = [subject.readers[at] for at in subject.block_readers]
    seen: dict[int, Tensor] = {}
    handles = [stand(place, partial(seen.__setitem__, k)) for k, place in enumerate(places)]
    model = subject.model.eval()
    try:  # parameters that require grad are what autograd starts at
        args, kwargs = task.batch(ids, levels)
        losses = task.loss(model(*args, **kwargs), ids, levels)
    finally:
        for handle in handles:
            handle.remove()
    tensors = [seen[k] for k in range(len(places))]
    grads = torch.autograd.grad(losses.sum(), tensors)
    return {
        name: torch.stack([size(v, p.view, len(ids)) for v, p in zip(of, places, strict=True)], 1)
        for name, of in (("rms", tensors), ("grad_rms", grads))
    }


def stand(place: Reader, keep: Any) -> Any:
    """Hand the tensor at a place to ``keep`` in every forward; return the hook's handle."""
    assert place.when != "operation", f"{place.name!r} reads the stream in no module"
    calls = iter(range(sys.maxsize))

    def see(value: Any) -> None:
        if next(calls) == place.call[0]:
            keep(value)

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        see(next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)))

    def after(module: Any, args: tuple[Any, ...], output: Any) -> None:
        see(output if place.item is None else output[place.item])

    if place.when == "input":
        return place.module.register_forward_pre_hook(before, with_kwargs=True)
    return place.module.register_forward_hook(after)


def size(value: Tensor, view: View, count: int) -> Tensor:
    """Return the root mean square of each sample's measured tokens (count,)."""
    axes, value = view.layout, value.detach().double()
    if axes.rows is not None:  # samples and tokens share one axis
        own = [axes.rows, count] if axes.inner else [count, axes.rows]
        value = value.unflatten(axes.samples, own)
        value = value.movedim(axes.samples + axes.inner, 0)
    else:
        value = value.movedim(axes.samples, 0)
    if axes.features != -1 and axes.rows is None:
        value = value.movedim(axes.features, -1)
    if view.tokens is not None:
        assert not axes.across
        value = value.flatten(1, -2)[:, view.tokens]
    return value.square().flatten(1).mean(1).sqrt()


def bad(found: Row) -> list[str]:
    """Return one sentence for each number of a row that is above what passes."""
    most = MOST[found["dtype"]]
    values = {"write": found["writes"]["largest"], **found["states"]}
    return [
        f"{found['name']}: {name} differs by {value:.2g}, above {most[name]:g}"
        for name, value in values.items()
        if value is not None and not value <= most[name]
    ]


def unlike(found: Row, kept: Row) -> list[str]:
    """Return one sentence for each thing but a measured difference that is not as it was kept."""

    def told(one: Row) -> Row:
        writes = {key: one["writes"][key] for key in ("sublayers", "agree")}
        return {**one, "writes": writes, "states": None}

    now, then = told(found), told(kept)
    return [
        f"{found['name']}: {key} is {now.get(key)!r}, and {then.get(key)!r} in {TABLE.name}"
        for key in sorted(now.keys() | then.keys())
        if now.get(key) != then.get(key)
    ]


def line(found: Row) -> str:
    """Return a row as a person reads it."""
    writes, near = found["writes"], found["states"]
    streams = ", ".join(
        f"{title} {one['blocks']} blocks {one['sublayers']} sublayers"
        for title, one in found["streams"].items()
    )
    most = [writes["largest"], near["rms"], near["grad_rms"]]
    shown = ["not measured" if one is None else f"{one:.1e}" for one in most]
    return (
        f"{found['name']:34} {found['granularity']}; {streams}; {found['objective']}; "
        f"{writes['agree']} of {writes['sublayers']} writes {shown[0]}; rms {shown[1]}, "
        f"grad_rms {shown[2]}; {found['dtype']}"
    )


def read() -> dict[str, Any]:
    """Return the table that is kept."""
    return json.loads(TABLE.read_text(encoding="utf-8"))


def write(rows: list[Row]) -> None:
    """Keep a table, one line a row."""
    head = {
        "command": "python tests/compat.py",
        "date": date.today().isoformat(),
        "versions": {
            "dar-probe": __version__,
            "torch": torch.__version__,
            "diffusers": version("diffusers"),
        },
    }
    lines = ",\n".join(json.dumps(one) for one in rows)
    TABLE.write_text(f'{json.dumps(head)[:-1]}, "rows": [\n{lines}\n]}}\n', encoding="utf-8")


def main() -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="NAME", help="a name or a class; writes nothing")
    parser.add_argument(
        "--check", action="store_true", help="compare with the table; write nothing"
    )
    asked = parser.parse_args()
    torch.set_num_threads(1)
    wanted = [n for n in names() if asked.only in (None, n, class_of(n))]
    if not wanted:
        parser.error(f"no model is called {asked.only!r}: {', '.join(names())}")
    rows, wrong = [], []
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as home:
        warnings.simplefilter("ignore")  # of classes that are deprecated, or use autocast
        for at, name in enumerate(wanted):
            (folder := Path(home) / str(at)).mkdir()
            rows.append(row(name, folder))
            wrong += bad(rows[-1])
            print(line(rows[-1]), flush=True)
    if asked.check:
        kept = {one["name"]: one for one in read()["rows"]}
        wrong += [f"{name}: no row in {TABLE.name}" for name in wanted if name not in kept]
        wrong += [said for one in rows for said in unlike(one, kept.get(one["name"], one))]
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    if not wrong and not asked.only and not asked.check:
        write(rows)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())

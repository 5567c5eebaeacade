"""Mutates good files, and counts what comes of reading them.

    python tests/hostile/fuzz.py --count 20000 [--kind training.pt] [--seed 0]
    python tests/hostile/fuzz.py --minutes 60

Every file is read in a forked worker, so that a crash, a hang or a loss of memory is a finding
instead of the end. Allowed are the object that was asked for and our own refusal, within 64 MiB and
2 s of the processor; all else is a finding, its file is kept under --keep, the exit code is 1.
"""

import argparse
import json
import os
import random
import re
import select
import signal
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a script, tests is no package on the path

from dar_probe import checkpoints  # noqa: E402
from dar_probe.checkpoints import diffusers_folder as hub  # noqa: E402
from dar_probe.checkpoints.peek import Peek, peek  # noqa: E402
from dar_probe.checkpoints.reader import Checkpoint  # noqa: E402
from dar_probe.diffusion import data  # noqa: E402
from dar_probe.errors import CheckpointError, DarProbeError, UsageError  # noqa: E402
from dar_probe.files.analysis_folder import OutputFolder  # noqa: E402
from dar_probe.models.diffusers import conditioning  # noqa: E402
from dar_probe.results import store  # noqa: E402
from tests.checkpoints import packed  # noqa: E402
from tests.helpers import jax_trees  # noqa: E402
from tests.helpers.synthetic import dataset  # noqa: E402
from tests.hostile.builders import official_state, training_checkpoint  # noqa: E402

SECONDS, MEBIBYTES = 2.0, 64
NUMBERS = [0, 1, 255, 2**15, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1]
WORDS = ["null", "true", "-1", "0", "1e999", "[]", "{}", '""', str(2**63), "9" * 400, '"../../x"']


@dataclass(frozen=True)
class Kind:
    """A good file, how it is read, and what may come of that."""

    build: Callable[[Path], object]
    read: Callable[[Path], object]
    gives: type | tuple[type, ...]
    refuses: type[DarProbeError] = CheckpointError


def _folder(path: Path) -> Path:
    """The file that is mutated: settings of a diffusers transformer with its weights beside it."""
    config = {
        "_class_name": "DiTTransformer2DModel", "_diffusers_version": "0.42.1",
        "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8,
        "in_channels": 4, "patch_size": 2, "norm_type": "ada_norm_zero", "dropout": 0.0,
    }  # fmt: skip
    weights = {f"transformer_blocks.{k}.norm1.weight": torch.zeros(16) for k in range(2)}
    name = "diffusion_pytorch_model.safetensors"
    safetensors.torch.save_file(weights, path.with_name(name))
    path.write_text(json.dumps(config, indent=2))
    return path


def _pipeline(path: Path) -> Path:
    """The file that is mutated: the index of a pipeline, its transformer beside it."""
    (path.parent / "transformer").mkdir()
    _folder(path.parent / "transformer" / "config.json")
    path.write_text(json.dumps({
        "_class_name": "DiTPipeline", "_diffusers_version": "0.42.1",
        "transformer": ["diffusers", "DiTTransformer2DModel"], "transformer_2": [None, None],
    }))  # fmt: skip
    return path


def _shards(path: Path) -> None:
    """The file that is mutated: the index of two shards."""
    _folder(path.with_name("config.json"))
    path.with_name("diffusion_pytorch_model.safetensors").unlink()
    listed = {}
    for k in (1, 2):
        name = f"diffusion_pytorch_model-0000{k}-of-00002.safetensors"
        key = f"transformer_blocks.{k}.norm1.weight"
        safetensors.torch.save_file({key: torch.zeros(16)}, path.with_name(name))
        listed[key] = name
    path.write_text(json.dumps({"metadata": {"total_size": 128}, "weight_map": listed}))


def _index(path: Path) -> None:
    """The file that is mutated: the index of two shards of our own family."""
    state, listed = official_state(), {}
    for k in (1, 2):
        name = f"model-0000{k}-of-00002.safetensors"
        part = dict(list(state.items())[k - 1 :: 2])
        safetensors.torch.save_file(part, path.with_name(name))
        listed |= dict.fromkeys(part, name)
    path.write_text(json.dumps({"metadata": {"total_size": 128}, "weight_map": listed}))


def _four_bits(path: Path) -> None:
    """A weight that bitsandbytes packed, and one of ComfyUI with a scale."""
    parts, _ = packed.four_bits((8, 16), nested=3)
    state = {f"blocks.0.weight{end}": part for end, part in parts.items()}
    state["blocks.1.weight"] = torch.ones(4, 4).to(torch.float8_e4m3fn)
    state["blocks.1.scale_weight"] = torch.ones(())
    state["blocks.1.comfy_quant"] = packed.settings({"format": "float8_e4m3fn"})
    safetensors.torch.save_file(state, path)


def _jax(path: Path) -> None:
    np.savez(path, **jax_trees.arrays(official_state()))


def _arrays() -> dict[str, np.ndarray]:
    return {"latents": np.zeros((3, 4, 8, 8), np.float32), "labels": np.arange(3)}


def _one_array(path: Path) -> None:
    np.save(path, _arrays()["latents"])
    np.save(path.with_name(f"{path.stem}_labels.npy"), _arrays()["labels"])


def _picture(path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(path, {".jpg": "JPEG", ".bmp": "BMP"}.get(path.suffix))


def _read_pictures(path: Path) -> object:
    return data.images(path.parent, shape=(3, 8, 8))


def _shard(path: Path) -> None:
    np.savez(path, loss=np.arange(8.0), batch_size=np.array([8]))


def _read_shard(path: Path) -> object:
    folder = OutputFolder(path.parent / "out", key={})
    folder.work = path.parent  # its own is hidden beside the folder
    return folder.load(0)


KINDS = {
    "training.pt": Kind(training_checkpoint, checkpoints.read, Checkpoint),
    "flat.pt": Kind(lambda path: torch.save(official_state(), path), checkpoints.read, Checkpoint),
    "peeked.pt": Kind(training_checkpoint, peek, Peek),
    "flat.safetensors": Kind(
        lambda path: safetensors.torch.save_file(official_state(), path),
        checkpoints.read, Checkpoint,
    ),
    "peeked.safetensors": Kind(
        lambda path: safetensors.torch.save_file(official_state(), path), peek, Peek
    ),
    "q8.gguf": Kind(
        lambda path: packed.gguf(path, packed.as_gguf(official_state(width=32))[0]),
        checkpoints.read, Checkpoint, DarProbeError,  # without the package gguf all are refused
    ),
    "nf4.safetensors": Kind(_four_bits, checkpoints.read, Checkpoint),
    "jax.npz": Kind(_jax, checkpoints.read, Checkpoint),
    "peeked.npz": Kind(_jax, peek, Peek),
    "config.json": Kind(_folder, lambda path: hub.read(path.parent), hub.Folder),
    "analysis.nc": Kind(
        lambda path: store.write(dataset(blocks=2, samples=2, levels=2), path),
        store.read, object,
    ),
    "latents.npz": Kind(
        lambda path: np.savez(path, **_arrays()), data.latents, data.Data, UsageError
    ),
    "latents.npy": Kind(_one_array, data.latents, data.Data, UsageError),
    "latents.safetensors": Kind(
        lambda path: safetensors.numpy.save_file(_arrays(), path), data.latents, data.Data,
        UsageError,
    ),
    "text.npz": Kind(
        lambda path: np.savez_compressed(path, **_arrays()), conditioning.read_conditions, dict,
        UsageError,
    ),
    "000000.npz": Kind(_shard, _read_shard, dict, UsageError),
    **{
        f"a.{suffix}": Kind(_picture, _read_pictures, data.Data, UsageError)
        for suffix in ("png", "jpg", "webp", "bmp")
    },
    "model_index.json": Kind(_pipeline, lambda path: hub.read(path.parent), hub.Folder),
    "diffusion_pytorch_model.safetensors.index.json": Kind(
        _shards, lambda path: hub.read(path.parent), hub.Folder
    ),
    "model.safetensors.index.json": Kind(_index, checkpoints.read, Checkpoint),
}  # fmt: skip


def mutated(good: bytes, other: bytes, rng: random.Random) -> bytes:
    """Return ``good`` with one to four injuries; archives and JSON are also hurt from inside."""
    if good[:2] == b"PK" and rng.random() < 0.5:
        return _rezipped(good, rng)
    if good[:1] == b"{" and rng.random() < 0.7:
        return _reworded(good, rng)
    injured = bytearray(good)
    for _ in range(rng.choice([1, 1, 2, 4])):
        injured = _injured(injured, other, rng)
    return bytes(injured)


def _injured(data: bytearray, other: bytes, rng: random.Random) -> bytearray:
    if not data:
        return bytearray(other[:64])
    a, b = sorted(_places(len(data), rng))
    match rng.randrange(8):
        case 0 | 1:
            data[a] ^= 1 << rng.randrange(8)
        case 2:
            data[a] = rng.randrange(256)
        case 3:
            data = data[:a]
        case 4:
            del data[a : min(b, a + 64)]
        case 5:
            data[a:a] = data[a : min(b, a + 4096)]
        case 6:
            width, value = rng.choice([2, 4, 8]), rng.choice(NUMBERS)
            data[a : a + width] = (value % 256**width).to_bytes(
                width, rng.choice(["little", "big"])
            )
        case _:
            c = rng.randrange(len(other))
            data[a : a + 64] = other[c : c + rng.randrange(1, 65)]
    return data


def _places(size: int, rng: random.Random) -> tuple[int, int]:
    """Two places, more often near the ends, where formats keep their structure."""
    reach = rng.choice([32, 512, size, size])
    start = rng.choice([0, max(0, size - reach)])
    return tuple(min(size - 1, start + rng.randrange(reach)) for _ in range(2))


def _rezipped(good: bytes, rng: random.Random) -> bytes:
    """Hurt one entry, or the list of entries, of an archive whose checksums are right."""
    target = BytesIO()
    with (
        warnings.catch_warnings(),
        zipfile.ZipFile(BytesIO(good)) as old,
        zipfile.ZipFile(target, "w") as new,
    ):
        warnings.filterwarnings("ignore", "Duplicate name")  # that is the injury
        names = old.namelist()
        chosen = rng.choice([names[0], rng.choice(names)])  # first comes the pickle
        for name in names:
            content = old.read(name)
            if name == chosen:
                match rng.randrange(8):
                    case 0:
                        continue
                    case 1:
                        name = rng.choice(["../" + name, name.upper(), "x" * 60_000, "a\0b", "a/b"])
                    case 2:
                        new.writestr(name + "2", content)
                    case _:
                        content = bytes(_injured(bytearray(content), content or b"\0", rng))
            new.writestr(name, content, rng.choice([0, 0, 0, zipfile.ZIP_DEFLATED]))
    return target.getvalue()


def _reworded(good: bytes, rng: random.Random) -> bytes:
    """Put another value, or another name, where a value or a name stood."""
    text = good.decode()
    spots = list(re.finditer(r'"[^"]*"|-?\d+(?:\.\d+)?|\bnull\b|\btrue\b', text))
    for spot in sorted(rng.sample(spots, rng.choice([1, 1, 2])), key=lambda m: -m.start()):
        text = text[: spot.start()] + rng.choice([*WORDS, spot.group() * 2]) + text[spot.end() :]
    return text.encode()


def outcome(kind: Kind, path: Path) -> str:
    """Read one file: "read", "refused", or what is wrong with that."""
    try:
        found = kind.read(path)
    except kind.refuses as error:
        sentence = str(error)
        sound = sentence.isprintable() and len(sentence) < 600 and error.hint.isprintable()
        return "refused" if sound else f"a refusal that cannot be printed: {sentence[:99]!r}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if isinstance(found, Checkpoint):
        assert all(type(key) is str and type(t) is torch.Tensor for key, t in found.state.items())
    return "read" if isinstance(found, kind.gives) else f"gave a {type(found).__name__}"


def _work(kind: Kind, path: Path, good: bytes, other: bytes, seeds: range, pipe: int) -> None:
    """Read one mutant after the other, and tell each outcome before the next one begins."""
    with open(pipe, "w", buffering=1, encoding="utf-8", errors="backslashreplace") as tell:
        for seed in seeds:
            path.write_bytes(mutated(good, other, random.Random(seed)))
            before, began = _reset_peak(), time.process_time()  # not its neighbours
            found = outcome(kind, path)
            seconds, grown = time.process_time() - began, (_peak() - before) / 2**10
            if found in ("read", "refused") and seconds > SECONDS:
                found = f"{found}, but only after {seconds:.1f} s"
            if found in ("read", "refused") and grown > MEBIBYTES:
                found = f"{found}, but for {grown:.0f} MiB"
            tell.write(json.dumps([seed, found]) + "\n")


def _reset_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    """Highest resident memory since the reset, KiB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status).group(1))


def fuzz(name: str, seeds: range, folder: Path, keep: Path | None = None) -> Counter[str]:
    """Read the mutants of one kind that ``seeds`` give; count the outcomes."""
    kind, counts = KINDS[name], Counter[str]()
    home = folder / name.replace(".", "-")
    home.mkdir(parents=True, exist_ok=True)
    path = home / name
    kind.build(path)
    good = path.read_bytes()
    other = b"".join(p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file())[: 2**20]
    left = seeds
    while left:
        done = -1
        for seed, found in _in_a_worker(kind, path, good, other, left):
            done = seed
            counts[found] += 1
            if found not in ("read", "refused") and keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{seed}-{name}").write_bytes(mutated(good, other, random.Random(seed)))
        left = range(done + 1, seeds.stop) if done >= 0 else range(seeds.stop, seeds.stop)
    return counts


def _in_a_worker(kind: Kind, path: Path, good: bytes, other: bytes, seeds: range):
    """Yield (seed, outcome) until the seeds are through or the worker is lost, and say how."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        try:
            _work(kind, path, good, other, seeds, write_end)
        finally:  # a worker that fails must never go on as its parent
            os._exit(1)
    os.close(write_end)
    due, ended = seeds.start, ""
    with open(read_end, encoding="utf-8") as lines:
        while due < seeds.stop and not ended:
            if not select.select([lines], [], [], 10 * SECONDS)[0]:
                os.kill(child, signal.SIGKILL)
                ended = "hangs"
            elif line := lines.readline():
                seed, found = json.loads(line)
                due = seed + 1
                yield seed, found
            else:
                ended = "crashes"
    _, status = os.waitpid(child, 0)
    if due < seeds.stop:
        signal_ = f" by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else ""
        yield due, ended + signal_


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--count", type=int, default=1000, help="files of each kind")
    parser.add_argument("--minutes", type=float, help="instead of a count, over all kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("dar-probe-out/fuzz"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    total: dict[str, Counter[str]] = {name: Counter() for name in arguments.kind or KINDS}
    began, first = time.monotonic(), arguments.seed * 10**9
    step = 500 if arguments.minutes else arguments.count
    with tempfile.TemporaryDirectory() as folder:
        while True:
            for name, counts in total.items():
                counts += fuzz(name, range(first, first + step), Path(folder), arguments.keep)
            first += step
            if not arguments.minutes or time.monotonic() - began > 60 * arguments.minutes:
                break
    wrong = 0
    for name, counts in total.items():
        others = {found: n for found, n in counts.items() if found not in ("read", "refused")}
        wrong += sum(others.values())
        print(f"{name:20} {counts.total():7} files: {counts['refused']:7} refused, "
              f"{counts['read']:7} read, {sum(others.values())} otherwise")  # fmt: skip
        for found, n in sorted(others.items()):
            print(f"    {n} x {found[:200]}")
    print(f"{time.monotonic() - began:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""What this machine and this installation have: versions, devices, extras, memory, disk."""

import platform
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from dar_probe.runtime.memory import available
from dar_probe.runtime.version import __version__

# The dependencies of pyproject.toml, those first whose version explains most.
LIBRARIES = (
    "torch", "nnsight", "xarray", "numpy", "scipy", "pandas", "matplotlib", "plotly", "seaborn",
    "h5netcdf", "h5py", "safetensors", "pillow", "jinja2", "fonttools", "typer", "rich",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Extra:
    """Something that works only where more is installed.

    Attributes:
        name: as in ``pip install 'dar-probe[name]'``; "" where it is in none of them.
        needs: names of distributions.
        purpose: what it is for.
    """

    name: str
    needs: tuple[str, ...]
    purpose: str

    @property
    def missing(self) -> list[str]:
        """The distributions that are not installed."""
        return [name for name in self.needs if version_of(name) is None]

    @property
    def install(self) -> str:
        """The command that installs it."""
        what = f"'dar-probe[{self.name}]'" if self.name else " ".join(self.needs)
        return f"pip install {what}"


EXTRAS = (
    Extra(name="diffusers", needs=("diffusers", "accelerate"), purpose="diffusers folders"),
    Extra(name="gguf", needs=("gguf",), purpose="GGUF files of packed weights"),
    Extra(name="peft", needs=("peft",), purpose="analyze --adapter: LoRA adapters"),
    Extra(name="sampling", needs=("torchdiffeq",), purpose="sample and evaluate --solver dopri5"),
    Extra(name="tensorboard", needs=("tensorboard",), purpose="train --tensorboard"),
    Extra(name="torchao", needs=("torchao",), purpose="weights packed by torchao"),
    Extra(name="", needs=("transformers",), purpose="evaluate --features DIR, train with REPA"),
    Extra(
        name="", needs=("huggingface_hub",), purpose="checkpoints by an id of the Hugging Face Hub"
    ),
    Extra(name="", needs=("triton",), purpose="DAR_PROBE_KERNELS=triton on a GPU"),
)


@dataclass(frozen=True, kw_only=True)
class Device:
    """One device that torch can use.

    Attributes:
        name: as ``--device`` takes it.
        about: which one it is.
        free: bytes of memory that are left on it.
    """

    name: str
    about: str
    free: int


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Everything that is known of machine and installation.

    Attributes:
        dar_probe, python, platform: versions and the system's name.
        libraries: versions by distribution, None where one is missing.
        devices: the CPU first; none without torch.
        disk_free: bytes that are left where ``dar-probe-out`` would be written.
    """

    dar_probe: str
    python: str
    platform: str
    libraries: dict[str, str | None]
    devices: tuple[Device, ...]
    disk_free: int


def look(folder: Path) -> Environment:
    """Return what this machine and this installation have; ``folder`` is where files would go."""
    return Environment(
        dar_probe=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        libraries={name: version_of(name) for name in LIBRARIES},
        devices=tuple(_devices()),
        disk_free=shutil.disk_usage(folder).free,
    )


def version_of(distribution: str) -> str | None:
    """Return the version of what is installed under a name; None where nothing is."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> list[Device]:
    if version_of("torch") is None:
        return []
    import torch

    threads = torch.get_num_threads()
    about = f"{platform.machine()}, {threads} thread{'s' * (threads > 1)}"
    found = [Device(name="cpu", about=about, free=available())]
    for number in range(torch.cuda.device_count()):
        free, _ = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        found.append(Device(name=f"cuda:{number}", about=name, free=free))
    if torch.backends.mps.is_available():
        found.append(Device(name="mps", about="Apple GPU", free=available()))
    return found

"""A look at whether dar-probe measures rightly on this machine: two tiny models, and a law."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from dar_probe.errors import UsageError
from dar_probe.models.sit import SiTConfig
from dar_probe.probe.bench import random_workload
from dar_probe.probe.measure import measure
from dar_probe.probe.recorder import untouched
from dar_probe.runtime.device import find_device
from dar_probe.runtime.environment import Environment, look

LIMIT = 1e-2  # as in the verdict; measured in float32: 1e-3, and gates that are wrong give about 1
LOUD = 30.0  # times the usual size of a stream: the law holds up to the norms' eps
ROUTINGS = ("residual", "dar")
CELLS = 8


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """What came of it.

    Attributes:
        device: where the models ran.
        gate_conservation: the worst sum of a reader's gates, over its largest gate; the law says 0.
        read_residual: the worst error with which routes rebuild what a sublayer reads; 0 too.
        limit: of both.
        seconds: what it took, without the import of torch.
    """

    device: str
    gate_conservation: float
    read_residual: float
    limit: float
    seconds: float

    @property
    def passed(self) -> bool:
        """Tell whether both are below the limit; NaN is not."""
        return self.gate_conservation < self.limit and self.read_residual < self.limit

    @property
    def sentence(self) -> str:
        """Say what was found."""
        gates, reads = (
            "NaN" if value != value else f"{value:.1g}"
            for value in (self.gate_conservation, self.read_residual)
        )
        return (
            f"Self-test on {self.device} in {self.seconds:.1f} s: gates cancel to {gates} of the "
            f"largest, routes rebuild what is read to {reads} (limit of both {self.limit:g})."
        )


@dataclass(frozen=True, kw_only=True)
class Checkup:
    """What this machine and this installation have, and whether they measure rightly.

    Attributes:
        environment: versions, devices, memory and disk.
        test: what came of the self-test; None where it did not run.
        error: why it did not run.
    """

    environment: Environment
    test: SelfTest | None
    error: str = ""

    @property
    def passed(self) -> bool:
        """Tell whether the self-test ran and passed."""
        return self.test is not None and self.test.passed

    @property
    def sentence(self) -> str:
        """Say what came of the self-test."""
        return self.test.sentence if self.test else f"The self-test did not run: {self.error}"

    def __repr__(self) -> str:
        """Return versions, devices and the self-test, one line each."""
        found = self.environment
        versions = [f"{name} {version or 'missing'}" for name, version in found.libraries.items()]
        return "\n".join(
            [
                f"<dar-probe {found.dar_probe}: self-test {'passed' if self.passed else 'failed'}>",
                f"  python {found.python} on {found.platform}; {', '.join(versions)}",
                *(f"  {one.name}: {one.about}" for one in found.devices),
                f"  {self.sentence}",
            ]
        )


def checkup(device: str = "auto") -> Checkup:
    """Look at the machine and the installation, and run the self-test.

    Raises:
        UsageError: there is no such device.
    """
    found = look(Path.cwd())
    try:
        return Checkup(environment=found, test=self_test(device))
    except UsageError:
        raise  # of the device: there is nothing to test
    except Exception as error:  # a broken installation fails in any way it likes
        return Checkup(environment=found, test=None, error=f"{type(error).__name__}: {error}")


def self_test(device: str = "auto") -> SelfTest:
    """Measure a random model with plain residuals and one with a router, and check the error bars.

    Raises:
        UsageError: there is no such device.
        ProbeError: nothing could be measured.
    """
    began, place = time.perf_counter(), find_device(device)
    gates, reads = [], []
    for routing in ROUTINGS:
        config = SiTConfig(
            depth=4, width=32, heads=2, patch=2, in_channels=1, input_size=8, num_classes=10,
            routing=routing,
        )  # fmt: skip
        work = random_workload(config, cells=CELLS, device=place)
        with torch.no_grad():
            work.subject.model.get_parameter("x_embedder.proj.weight").mul_(LOUD)
        with untouched(work.subject.model):
            found = measure(work.subject, work.batch, work.loss, work.ids, work.levels)
        # Reader 1 has one source, whose gate need not vanish.
        gates.append(found["gate_conservation"][:, 1:].max())
        reads.append(found["read_residual"].max())
    return SelfTest(
        device=str(place), limit=LIMIT, seconds=time.perf_counter() - began,
        gate_conservation=torch.stack(gates).max().item(),  # NaN where one is
        read_residual=torch.stack(reads).max().item(),
    )  # fmt: skip

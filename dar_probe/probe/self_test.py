"""A look at whether dar-probe measures rightly on this machine: two tiny models, and a law."""

import time
from dataclasses import dataclass

import torch

from dar_probe.models.sit import SiTConfig
from dar_probe.probe.bench import random_workload
from dar_probe.probe.measure import measure
from dar_probe.probe.recorder import untouched
from dar_probe.runtime.device import find_device

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

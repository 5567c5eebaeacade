"""MeanFlow: a SiT with a second time, which predicts the mean velocity between the two.

After "Mean Flows for One-step Generative Modeling" (arXiv 2505.13447), with the parameter names of
the PyTorch implementation github.com/zhuyu-cs/MeanFlow. Blocks may have LightningDiT's options.
Shapes: N samples, C channels, D width.
"""

from torch import Tensor

from dar_probe.checkpoints.header import Header
from dar_probe.files.text import quote
from dar_probe.models import conventions
from dar_probe.models.lightningdit import LightningDiT, LightningDiTConfig, read_sizes, subject
from dar_probe.models.sit import TimestepEmbedder
from dar_probe.sites.family import Family, Identified

# Guidance that is trained in (arXiv 2505.13447, 4.2), and what these are without it.
GUIDANCE = {"cfg_omega": 1, "cfg_kappa": 0}


class MeanFlow(LightningDiT):
    """forward(x (N, C, h, w), t (N,), y (N,), r (N,)) -> velocity (N, C, h, w); t = 1 is noise."""

    def __init__(self, config: LightningDiTConfig) -> None:
        super().__init__(config)
        self.r_embedder = TimestepEmbedder(config.width)

    def forward(self, x: Tensor, t: Tensor, y: Tensor, r: Tensor | None = None) -> Tensor:
        """Predict the mean of noise - data from time ``r`` to ``t``; left out, r = t."""
        span = t - (t if r is None else r)
        c = self.t_embedder(t) + self.r_embedder(span) + self.y_embedder(y)  # (N, D)
        return self.conditioned(x, c)


def identify(header: Header, heads: int | None) -> Identified:
    """Read every size and option from one shape each.

    The noise level s is mapped to r = t = s: there the model predicts the velocity at t, and its
    loss is that of plain flow matching.
    """
    sizes = read_sizes(header, heads)
    classes = conventions.classes(header, sizes["rows"])
    header.assumptions.append(
        "read as MeanFlow: beside t = s it embeds t - r, and is measured at r = t, where it "
        "predicts the velocity at t; --objective overrides"
    )
    told = {name: value for name in GUIDANCE if (value := header.told(name)) is not None}
    if not told:
        header.assumptions.append(
            "nothing tells whether guidance was trained in: if so, the loss is not the trained one"
        )
    elif any(value != GUIDANCE[name] for name, value in told.items()):
        said = ", ".join(f"{name} {quote(value, 40)}" for name, value in told.items())
        header.assumptions.append(
            f"guidance was trained in ({said}): the loss is that of the velocity without it"
        )
    named = conventions.flow(header, "meanflow") or "meanflow"
    if named.count(":") and not named.endswith(":velocity"):
        raise header.contradiction(f"a MeanFlow that predicts {quote(header.told('prediction'))}")
    return Identified(
        family="meanflow",
        sizes=sizes,
        shape=(sizes["channels"], sizes["side"], sizes["side"]),
        num_classes=classes,
        objective=named,
        assumptions=header.assumptions,
    )


def build(identified: Identified) -> MeanFlow:
    """Return the model, its weights and rotary tables not yet filled."""
    return MeanFlow(LightningDiTConfig(**identified.sizes))


FAMILY = Family(
    name="meanflow",
    title="MeanFlow",
    marks=(
        r"x_embedder\.proj\.weight\Z",
        r"blocks\.0\.adaLN_modulation\.1\.weight\Z",
        r"r_embedder\.mlp\.0\.weight\Z",
    ),
    identify=identify,
    build=build,
    subject=subject,
)

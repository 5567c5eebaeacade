"""The three symptoms of PreNorm dilution: names, words, formulas and limits, in this place alone.

After arXiv 2605.20708, section 3. The verdict, the terminal, pages, figures and the study read
them from here, in this order.
"""

from dataclasses import dataclass

from dar_probe.results.intervals import Scale

PAPER = "arXiv 2605.20708, section 3"
STAGED = "; NaN where a new stream begins on the way"


@dataclass(frozen=True, kw_only=True)
class Symptom:
    """One symptom.

    Attributes:
        name: of its metric, its finding, and its two limits in ``Thresholds``.
        label: what the terminal and the notebook call it.
        title: what pages call it.
        about: what it says, in one sentence.
        definition: the formula in words.
        axis: what stands beside its values in print.
        variable: its curve over the blocks.
        unit: "x" for a ratio, empty for a cosine.
        warn, fail: default limits. The paper's figures for SiT-XL/2 are the failures; the
            warnings are ours.
    """

    name: str
    label: str
    title: str
    about: str
    definition: str
    axis: str
    variable: str
    unit: str
    warn: float
    fail: float

    @property
    def ratio(self) -> bool:
        """Whether it is a ratio, which axes show on a logarithmic scale."""
        return self.unit == "x"

    @property
    def scale(self) -> Scale:
        """On which scale means over seeds and their intervals are taken."""
        return "ratio" if self.ratio else "cosine"

    @property
    def words(self) -> str:
        """The name as words: "gradient decay"."""
        return self.name.replace("_", " ")


SYMPTOMS = {
    symptom.name: symptom
    for symptom in (
        Symptom(
            name="inflation",
            label="RMS inflation",
            title="Forward magnitude inflation",
            about="How many times larger the hidden state is after the last block than after the "
            "first.",
            definition="rms[B] / rms[1], rms pooled over samples and noise levels by mean square"
            + STAGED,
            axis="last / first block",
            variable="rms",
            unit="x",
            warn=3.0,
            fail=10.0,
        ),
        Symptom(
            name="gradient_decay",
            label="gradient decay",
            title="Backward gradient decay",
            about="How many times larger the gradient is in the first blocks than in the "
            "deep half.",
            definition="mean of grad_rms over blocks 1..min(5, B/2) / median of grad_rms over the "
            "deep half (blocks k > B/2), pooled over samples and noise levels by mean square"
            + STAGED,
            axis="early / deep blocks",
            variable="grad_rms",
            unit="x",
            warn=3.0,
            fail=10.0,
        ),
        Symptom(
            name="redundancy",
            label="redundancy",
            title="Block-wise redundancy",
            about="How alike neighbouring blocks of the deep half are: mean cosine, 1 for no "
            "change.",
            definition="mean cosine between neighbouring blocks over the deep half "
            "(blocks k > B/2)",
            axis="cosine, deep half",
            variable="cosine",
            unit="",
            warn=0.90,
            fail=0.96,
        ),
    )
}
# What is measured beside them: how routers choose, and whether that depends on the noise level.
CHOICES = ("selectivity", "selectivity_shift", "importance_shift")


def unit_of(name: str) -> str:
    """Return the unit of any metric: "x" for the symptoms that are ratios, else empty."""
    return SYMPTOMS[name].unit if name in SYMPTOMS else ""

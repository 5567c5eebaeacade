"""Every sentence of the page that does not depend on the numbers."""

from dar_probe.results import schema

STATUS_WORDS = {
    "pass": "pass",
    "warn": "warning",
    "fail": "fail",
    "info": "for information",
    "untrained": "untrained",
    "not measurable": "not measurable",
}
TRUST_TEXT = {
    "gate_conservation": (
        "gates do not cancel",
        "In theory the gates of one reader cancel to zero. What is left over, as a share of the "
        "largest gate, bounds the error of every importance. Above 0.01 do not trust them.",
    ),
    "read_residual": (
        "routes do not rebuild the read",
        "Distance between what a reader read and its sources weighted by its routes, as a share "
        "of the read. Above 0.01 do not trust routes and gates.",
    ),
    "write_lost": (
        "writes lost to rounding",
        "Share of a sublayer's result that was lost when it was added to a much larger stream.",
    ),
}
# What is neither a measured variable nor one of the numbers of the verdict: title, text, source.
MEANINGS = {
    "importance": (
        "Importance",
        "sqrt of the mean over samples of gate squared, divided by its sum over the sources of "
        "that reader and noise level; gate is dLoss/dg, g multiplying one source as one reader "
        "reads it. For a block the gates of its sublayers are summed first.",
        "arXiv 2605.20708, section 3",
    ),
    "sign": (
        "Consistent sign",
        "A dot marks a cell where the size of the mean over samples of the gate reaches the 95 % "
        "quantile of the same under random signs per sample. One in twenty gates without a "
        "consistent sign gets a dot by chance.",
        "Fisher 1935, The Design of Experiments, section 21",
    ),
    "interval": (
        "95 % interval",
        "Expanded percentile bootstrap over whole samples, 1,000 resamples, the same draw at "
        "every noise level. It covers the choice of samples and their noise, not the choice of "
        "checkpoint, data or training run.",
        "Hesterberg 2015, What Teachers Should Know About the Bootstrap",
    ),
    "paired": (
        "Paired difference",
        "Other minus reference. Both are resampled with the same draws of samples, whose noise is "
        "the same in both, so what samples do to both alike cancels: the expanded percentile "
        "bootstrap of the difference.",
        "Hesterberg 2015, What Teachers Should Know About the Bootstrap",
    ),
    "spread": (
        "Spread over samples",
        "Each sample's own value, pooled over the noise levels; between the 5 % and the 95 % "
        "quantile of these lie the middle 90 % of the samples. It shows how samples differ, not "
        "how well their mean is known: more samples do not narrow it.",
        "dar-probe",
    ),
    "limits": (
        "Limits",
        "A symptom fails when its whole interval lies beyond the failure limit, and is a warning "
        "when its value lies beyond the warning limit or its interval reaches the failure limit. "
        "By default failures are the paper's figures for a plain SiT-XL/2; warnings are "
        "dar-probe's.",
        "arXiv 2605.20708, section 3",
    ),
    "rule": (
        "Rule",
        "A comparison of the numbers of the verdict, given by the user in place of the limits.",
        "--fail-on",
    ),
    "measurement": (
        "Error bars of the measurement",
        "Three quantities that theory sets to zero, measured in this run: what is left of the "
        "sum of a reader's gates, the distance between a read and its weighted sources, and the "
        "share of a write lost to rounding; each of the worst reader or sublayer.",
        "dar-probe",
    ),
    "dead_blocks": (
        "Blocks that write nothing",
        "Every sublayer of the block writes less than the limit, as a share of what it reads.",
        "dar-probe",
    ),
    "idle_blocks": (
        "Idle blocks",
        "The cosine between what the block reads and what it hands on is above the limit.",
        "dar-probe",
    ),
    "largest_source": (
        "Most important source",
        "The source with the largest importance for this reader at this noise level, and its "
        "share. Not shown for a reader of one source.",
        "dar-probe",
    ),
    "step": ("Training step", schema.STEP_TEXT, ""),
    "parameters": ("Parameters", "The count of all numbers in the model's weights.", ""),
    "study:loss": (
        "Validation loss",
        "Denoising loss of the weights' average on held-out samples with fixed noise, mean over "
        "ten noise levels from 0.05 to 0.95",
        "dar-probe train",
    ),
    "study:pairs": (
        "Paired over seeds",
        "A scheme's run minus the reference's run of the same seed, which has the same batches, "
        "noise and dropped labels; the interval is Student's, over seeds",
        "",
    ),
    "study:frechet": (
        "Fréchet distance",
        "Squared distance of two Gaussians, fitted to samples of the average and to the training "
        "rows in the features of a small classifier of the digits; it is no FID",
        "arXiv 1706.08500",
    ),
    "study:time": (
        "Loss at equal time",
        "Validation loss, between two measured steps, when the reference has done all its steps: "
        "at the reference's steps divided by the price of a step",
        "",
    ),
    "study:sooner": (
        "Times fewer steps",
        "The reference's steps divided by those in which its final validation loss is reached, "
        "within a seed; below 1 it takes more",
        "arXiv 2605.20708, section 5",
    ),
    "study:seconds": (
        "Price of a step",
        "Seconds of one optimiser step over those of the reference's, measured in turn before "
        "each run: median of the ratios. Seconds in figures are steps times this price times the "
        "median of all residual steps",
        "",
    ),
    "study:memory": (
        "Memory",
        "High water of tensor bytes in one optimiser step, over the reference's; weights and "
        "optimiser state that are there before do not count",
        "",
    ),
    "study:flops": (
        "MFLOPs",
        "Of matrix products in the forward of one sample; sums and softmaxes over sources are "
        "none, so see the price of a step",
        "",
    ),
}
PAPER = "Rethinking Cross-Layer Information Routing in Diffusion Transformers"
BIBTEX = f"""@misc{{dar2026,
  title         = {{{PAPER}}},
  year          = {{2026}},
  eprint        = {{2605.20708}},
  archivePrefix = {{arXiv}},
  url           = {{https://arxiv.org/abs/2605.20708}}
}}"""

MATRIX_CAPTION = (
    "Each row is one reader, each column one source that it may be offered; the slider walks over "
    "the noise levels. A row's importances sum to 1; a reader of two sources shows one half for "
    "each in every model, because their gates cancel. Grey: not offered, or not measurable. "
    "Click a row to see that reader over all noise levels, below."
)
READER_CAPTION = (
    "One row of the maps above at every noise level: where this reader reads from. The colour "
    "scale is its own. Grey: not measurable."
)
STEPS_CAPTION = (
    "The three symptoms at every checkpoint of the run, pooled over samples and noise levels. "
    "Bands: 95 % intervals over samples. Dotted: warning limit; dashed: failure limit."
)
STREAMS_CAPTION = (
    "The stream of the image, which the output comes from, and that of the text, which blocks read "
    "beside it. Each has its own blocks, counted from 1. The verdict is the image's."
)
EFFECT_CAPTION = (
    "Every point is one intervention by a real forward: a gate set to zero, a block skipped, a "
    "router's weights replaced. On the dashed line the first-order prediction of the gates is "
    "exact. Three quantities stay apart on this page: routes are what a router weighs, importance "
    "is what a small change would do, and this is what removal does."
)
DOT_CAPTION = (
    " A dot marks the few cells whose gate has a consistent sign: signs drawn at random for the "
    "samples give as large a mean in at most 5 % of draws. Elsewhere more of this source helps "
    "some samples and hurts others."
)
DOT_AGAIN = " A dot marks a gate with a consistent sign."
READER_FOLD = "Where one reader reads from"
VARIABLES_FOLD = "Every variable over depth and noise level"
FEW_CAPTION = (
    " No cell has a dot for a gate with a consistent sign, because that cannot be told from "
    "fewer than six samples."
)
DECODING_CAPTION = (
    "R2 of the noise level predicted from the token mean of each read, by ridge regression on "
    "other samples. Bands: 95 % intervals."
)


def depth_caption(router: bool, samples: int, *, stream: bool = True) -> str:
    """Return the caption of the figure over depth; without a ``stream`` states are all there is."""
    gradient = (
        "The gradient is that of one reader, because this model has a router."
        if router
        else f"The gradient is that of the whole {'residual stream' if stream else 'state'}."
    )
    bands = "Bands: 95 % intervals over samples. " if samples > 1 else ""
    return (
        "Hidden-state RMS, gradient RMS and cosine between neighbouring blocks, pooled over "
        f"samples and noise levels. {bands}{gradient}"
    )


def dot_caption(told: bool) -> str:
    """Return the sentence on the dots of an importance map; ``told``: enough samples for them."""
    return DOT_CAPTION if told else FEW_CAPTION


def source_caption(router: bool) -> str:
    """Return the caption of the shallow and deep maps."""
    text = (
        "What a shallow and a deep block take from which earlier block. Importance asks what the "
        "loss would feel if one source were turned up or down for this reader alone: root mean "
        "square over samples, as a share of the column."
    )
    if router:
        text += (
            " Routes are the weights that the router really gave. The two are different "
            "quantities, so each has its own scale."
        )
    return text + " Grey: not offered to this reader."

"""The paper's claims (arXiv 2605.20708) one by one, against the records of a study."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from dar_probe.results.intervals import Interval, over_seeds
from dar_probe.results.study.aggregate import Results, SchemeResult
from dar_probe.results.study.record import Record
from dar_probe.results.symptoms import SYMPTOMS

Status = Literal["confirmed", "not confirmed", "undecided", "not testable"]
PAPER_FACTOR = 8.75  # 1.75 M iterations of the baseline against 200 k of DAR


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim: what it says, what was found here, and what that means."""

    text: str
    status: Status
    evidence: str


def judge(results: Results) -> list[Claim]:
    """Return every claim of the paper, in its order.

    Differences are paired over seeds. A claim is confirmed where the 95 % interval of its number
    lies on its side, not confirmed where it does not, and undecided where one seed has no interval.
    """
    return [
        *_symptoms(results),
        _depends_on_noise(results),
        *_tightened(results),
        *_quality(results),
        _faster(results),
        *_queries(results),
        _chunks(results),
        _with_repa(results),
        *_untestable(),
    ]


def symptom(name: str, when: str = "end") -> Callable[[Record], float]:
    """Return what reads one symptom of a record; NaN where it is not measurable."""

    def value(one: Record) -> float:
        found = getattr(one, when)[name]["value"]
        return math.nan if found is None else float(found)

    return value


def final_loss(one: Record) -> float:
    """Return the validation loss after a run's last step."""
    return one.losses[-1]


def final_frechet(one: Record) -> float:
    """Return the Fréchet distance after a run's last step; NaN where nothing judged it."""
    return float(one.quality[-1]["frechet"]) if one.quality else math.nan


def verdict_of(found: Interval, digits: int = 3) -> str:
    """Return "0.41 [0.40, 0.42]"; without an interval, "0.41 (one seed)"."""
    if not math.isfinite(found.value):
        return "not measured"
    if found.seeds < 2:
        return f"{found.value:.{digits}g} (one seed)"
    return f"{found.value:.{digits}g} [{found.low:.{digits}g}, {found.high:.{digits}g}]"


def apart(gain: Interval, digits: int = 3) -> str:
    """Return "lower by 0.41 [0.40, 0.42]", or "higher by" what a negative gain loses."""
    if not math.isfinite(gain.value):
        return "not measured"
    return (
        f"higher by {verdict_of(-gain, digits)}"
        if gain.value < 0
        else f"lower by {verdict_of(gain, digits)}"
    )


def decide(found: Interval, above: float = 0.0) -> Status:
    """Return whether a number is known to lie above a limit."""
    if not math.isfinite(found.value) or found.seeds < 2:
        return "undecided"
    return "confirmed" if found.low > above else "not confirmed"


def of_symptom(line: SchemeResult, name: str, when: str = "end") -> Interval:
    """Return a symptom, or another number of an analysis, over a line's seeds."""
    scale = SYMPTOMS[name].scale if name in SYMPTOMS else "share"
    return over_seeds([symptom(name, when)(one) for one in line.records], scale)


def _less(line: SchemeResult, other: SchemeResult, value: Callable[[Record], float]) -> Interval:
    """Return how much less of ``value`` a line has than another, paired; NaN without a pair."""
    theirs = {one.seed: one for one in other.records}
    both = [(own, theirs[own.seed]) for own in line.records if own.seed in theirs]
    return over_seeds([value(one) - value(own) for own, one in both])


def _missing(text: str, *names: str) -> Claim:
    return Claim(text=text, status="undecided", evidence=f"no run of {' or '.join(names)} yet")


def _symptoms(results: Results) -> list[Claim]:
    texts = {
        "inflation": "Under plain residuals the hidden-state RMS grows with depth (about 100x).",
        "gradient_decay": "Under plain residuals the gradient falls with depth (above 10x).",
        "redundancy": "Under plain residuals deep neighbours are alike (cosine above 0.9).",
    }
    limits = {"inflation": 1.0, "gradient_decay": 1.0, "redundancy": 0.9}
    line, found = results.get("residual"), []
    for name, text in texts.items():
        if line is None:
            found.append(_missing(text, "residual"))
            continue
        start, end = (of_symptom(line, name, when) for when in ("start", "end"))
        evidence = f"after training {verdict_of(end)}; before {verdict_of(start)}"
        found.append(Claim(text=text, status=decide(end, limits[name]), evidence=evidence))
    return found


def _depends_on_noise(results: Results) -> Claim:
    text = "Even a plain model takes different sources at different noise levels."
    line = results.get("residual")
    if line is None:
        return _missing(text, "residual")
    shift = of_symptom(line, "importance_shift")
    evidence = (
        f"importances move by {verdict_of(shift)} of their sum from the lowest to the highest"
    )
    return Claim(text=text, status=decide(shift, 0.05), evidence=evidence)


def _tightened(results: Results) -> list[Claim]:
    """Each symptom of the better DAR against the residual model's."""
    words = {
        "inflation": "DAR inflates the hidden state less.",
        "gradient_decay": "DAR lets the gradient fall less with depth.",
        "redundancy": "DAR's deep neighbours are less alike.",
    }
    found = []
    for name, text in words.items():
        lines = _lines(results, "dar-static+t", "dar-dynamic")
        if not lines:
            found.append(_missing(text, "dar-static+t", "dar-dynamic"))
            continue
        gains = [line.gain(symptom(name)) for line in lines]
        evidence = "; ".join(
            f"{line.label} {verdict_of(of_symptom(line, name))}, {apart(gain)}"
            for line, gain in zip(lines, gains, strict=True)
        )
        found.append(Claim(text=text, status=_all([decide(gain) for gain in gains]),
                           evidence=evidence))  # fmt: skip
    return found


def _quality(results: Results) -> list[Claim]:
    """Loss and Fréchet distance at equal steps and at equal time."""
    lines = _lines(results, "dar-static+t", "dar-dynamic")
    texts = (
        "At equal steps DAR's samples are better (FID 7.56 against 9.67).",
        "At equal steps DAR's loss is lower.",
        "At equal time DAR's loss is lower.",
    )
    if not lines:
        return [_missing(text, "dar-static+t", "dar-dynamic") for text in texts]
    frechet = [line.gain(final_frechet) for line in lines]
    loss = [line.gain(final_loss) for line in lines]
    timed = [time_gain(line) for line in lines]
    found = []
    for text, word, gains in zip(
        texts,
        ("Fréchet distance", "loss", "loss"),
        (frechet, loss, timed),
        strict=True,
    ):
        evidence = "; ".join(
            f"{line.label}: {word} {apart(gain)}" for line, gain in zip(lines, gains, strict=True)
        )
        found.append(Claim(text=text, status=_any([decide(gain) for gain in gains]),
                           evidence=evidence))  # fmt: skip
    return found


def time_gain(line: SchemeResult) -> Interval:
    """Return how much lower the loss is when the reference has done all its steps, paired."""
    return over_seeds([other.losses[-1] - line.loss_in_time(own) for own, other in line.pairs])


def _faster(results: Results) -> Claim:
    text = f"DAR reaches the residual model's final quality in {PAPER_FACTOR}x fewer steps."
    lines = _lines(results, "dar-static+t", "dar-dynamic")
    if not lines:
        return _missing(text, "dar-static+t", "dar-dynamic")
    status = _any([decide(over_seeds(line.factors, "ratio"), PAPER_FACTOR) for line in lines])
    return Claim(text=text, status=status, evidence="; ".join(map(sooner, lines)))


def sooner(line: SchemeResult) -> str:
    """Say in how many times fewer steps the reference's final loss is reached."""
    never = sum(not factor for factor in line.factors)
    if never:
        times = f"in {never} of {len(line.factors)} runs" if len(line.factors) > 1 else "in its run"
        return f"{line.label} does not reach it {times}"
    found = over_seeds(line.factors, "ratio")
    spread = f"[{found.low:.2f}, {found.high:.2f}]" if found.seeds > 1 else "(one seed)"
    return f"{line.label} takes {found.value:.2f}x fewer steps {spread}"


def _queries(results: Results) -> list[Claim]:
    """What the query knows: nothing of the noise, the noise, or the token."""
    found = []
    for text, better in (
        ("Time-blind (static) queries are worse than static+t.", "dar-static+t"),
        ("Time-blind (static) queries are worse than dynamic ones.", "dar-dynamic"),
    ):
        blind, aware = results.get("dar-static"), results.get(better)
        if blind is None or aware is None:
            found.append(_missing(text, "dar-static", better))
            continue
        loss, frechet = (_less(blind, aware, value) for value in (final_loss, final_frechet))
        evidence = f"static: loss {apart(loss)}, Fréchet distance {apart(frechet)}"
        found.append(Claim(text=text, status=decide(-frechet), evidence=evidence))
    return found


def _chunks(results: Results) -> Claim:
    text = "Chunks of S = 4 beat both the dense model (S = 1) and larger ones (S = 8)."
    sized = results.varied("chunks")
    if results.get("dar-static+t") is None or len(sized) < 2:
        return _missing(text, "the chunk sizes")
    parts = [f"S={chunk_of(line)}: {verdict_of(line.loss)}" for line in sized]
    best = min(sized, key=lambda line: line.loss.value)
    evidence = f"loss {', '.join(parts)}; best S={chunk_of(best)}"
    four, *others = sized
    states = [decide(_less(four, line, final_loss)) for line in others]
    return Claim(text=text, status=_all(states), evidence=evidence)


def chunk_of(line: SchemeResult) -> int:
    """Return S of a line of DAR."""
    return int(line.records[0].config["chunk_size"])


def _with_repa(results: Results) -> Claim:
    text = "With REPA on top, DAR is still faster (2x early in training)."
    line = results.get("dar-static+t-repa")
    if line is None or not line.pairs:
        return _missing(text, "residual-repa", "dar-static+t-repa")
    gain = line.gain(final_loss)
    evidence = f"{sooner(line)}; loss {apart(gain)}"
    return Claim(
        text=text, status=decide(over_seeds(line.factors, "ratio"), 1.0), evidence=evidence
    )


def _untestable() -> list[Claim]:
    why = {
        "The dedicated final aggregator is worth about 2 FID.": "a model without it is not built",
        "The noise level can be read from what deep blocks read (R2 above 0.95).": "dar-probe "
        "analyze measures it on a checkpoint: decodability in analysis.nc",
        "DAR can be added to a large text-to-image model by LoRA and keeps detail under "
        "distillation.": "no such model here",
        "A fused kernel saves 79 % of memory and is 11.5x faster.": "it takes a GPU",
    }
    return [Claim(text=text, status="not testable", evidence=note) for text, note in why.items()]


def _lines(results: Results, *names: str) -> list[SchemeResult]:
    found = [results.get(name) for name in names]
    return [line for line in found if line is not None and line.pairs]


def _all(states: list[Status]) -> Status:
    return next((s for s in ("undecided", "not confirmed") if s in states), "confirmed")


def _any(states: list[Status]) -> Status:
    return next((s for s in ("confirmed", "undecided") if s in states), "not confirmed")

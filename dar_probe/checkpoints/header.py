"""What a file says before its weights are read: names, shapes and settings."""

import math
import re
from dataclasses import dataclass, field
from typing import Any

from dar_probe.errors import CheckpointError
from dar_probe.files.text import quote
from dar_probe.runtime.version import PAGES

Shapes = dict[str, tuple[int, ...]]

# Far above every model: a header that claims more must not reach torch, which would overflow.
LARGEST_SIZE, LARGEST_TENSOR = 2**20, 2**40

# What only one other layout has in its names, and what it is called.
OTHERS = {
    "transformer_blocks.": "a diffusers layout",
    "double_blocks.": "a Flux layout",
    "input_blocks.": "a U-Net layout",
    "blocks.0.attn_temp.": "Open-Sora 1.0 or 1.1",
    "y_embedder.y_proj.": "a layout that reads text, such as PixArt's",
    "stream.": "a routed dar-probe model without its settings",
}

# What begins a name in layouts that are read, although they have names of OTHERS as well.
READ = ("spatial_blocks.",)

# Parts that models have beside another one's, by their names, and what they are.
TOKENS = {
    r"\bcls_|_cls\b": "a class token beside the image's, as in REG",
    r"\bregisters?\b|\bregister_tokens?\b|\breg_tokens?\b": "register tokens",
}
EXTRAS = {
    **TOKENS,
    r"\bbeta_embedder\b|\bt_embedder\.cond_proj\b": "an embedding of the guidance, as in GFT",
    r"\b(w|cfg|guidance|scale|omega)_embed": "an embedding of the guidance",
    r"\b(r|h|d|dt|delta_t|step)_embedder\b": "an embedding of a second time or of the step",
    r"\b(text|txt|caption|context)_|\bcross_attn\b|\bcross_attention\b": "a condition beside "
    "the class",
    r"\bskip_(linear|norm|proj)": "skips between blocks",
}


@dataclass(kw_only=True)
class Header:
    """Names, shapes and settings of a checkpoint.

    Attributes:
        shown: the file's name, quoted for messages.
        shapes: of every tensor, by its plain name.
        args: the settings stored beside the weights, {} where there are none.
        weights: "ema", "model" or "flat".
        assumptions: one sentence for each thing that the file could not tell; families add theirs.
        asked: the names of settings that somebody has asked for.
    """

    shown: str
    shapes: Shapes
    args: dict[str, Any]
    weights: str = "flat"
    assumptions: list[str] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)

    def shape(self, key: str, dims: int) -> tuple[int, ...]:
        """Return the shape of ``key``, which must have ``dims`` sizes, none zero or absurd."""
        if key not in self.shapes:
            raise self.unknown(key, "missing")
        shape = self.shapes[key]
        if len(shape) != dims or not all(0 < size <= LARGEST_SIZE for size in shape):
            raise self.misshapen(key)
        if math.prod(shape) > LARGEST_TENSOR:
            raise self.misshapen(key)
        return shape

    def told(self, *names: str) -> Any:
        """Return the first setting with one of these names, at the top or one section below."""
        self.asked.update(names)
        sections = [self.args, *(part for part in self.args.values() if isinstance(part, dict))]
        return next((part[n] for part in sections for n in names if part.get(n) is not None), None)

    def unknown(self, culprit: str, what: str) -> CheckpointError:
        """Name the layout that the names resemble, or else the first culprit."""
        return self._other() or self._unread(f"{quote(culprit)} is {what}")

    def unexpected(self, key: str) -> CheckpointError:
        """Say that no known model has this part, and what it is where its name tells."""
        what = next((said for mark, said in EXTRAS.items() if re.search(mark, key)), "")
        part = f", part of {what}" if what else ""
        return self.unknown(key, f"unexpected{part}: without it this is another model")

    def contradiction(self, why: str) -> CheckpointError:
        """Say that two things in the file exclude each other."""
        return CheckpointError(
            f"{self.shown} contradicts itself: {why}",
            hint="it was edited, or put together from two models",
        )

    def misshapen(self, key: str, fit: tuple[int, ...] | None = None) -> CheckpointError:
        """Name the layout that the names resemble, or else the misfit, and the shape ``fit``."""
        has = f"{quote(key)} has shape {self.shapes[key]}"
        # Older versions of DeepSpeed leave one number.
        if 2 * sum(shape in ((0,), (1,)) for shape in self.shapes.values()) > len(self.shapes):
            return CheckpointError(
                f"{self.shown} lacks the numbers of its weights: {has}",
                hint="DeepSpeed's ZeRO-3 and FSDP leave weights empty that were not gathered: use "
                "zero_to_fp32.py, or save a full state dict",
            )
        if other := self._other():
            return other
        if fit:
            return self.contradiction(f"{has}, where {fit} fits the rest")
        return self._unread(f"{has}, which fits no known model")

    def _unread(self, why: str) -> CheckpointError:
        return CheckpointError(
            f"{self.shown} is no known layout: {why}",
            hint=f"{PAGES}/reference/compatibility.html has the layouts that are read; --family "
            "package.module:FAMILY adds one of your own, and dar-probe audit measures any module",
        )

    def _other(self) -> CheckpointError | None:
        if self.args.get("format") == "dar-probe" or any(k.startswith(READ) for k in self.shapes):
            return None
        for mark, layout in OTHERS.items():
            for key in self.shapes:
                if f".{mark}" in f".{key}":
                    return CheckpointError(
                        f"{self.shown} looks like {layout}, not supported yet: it has {quote(key)}",
                        hint="dar-probe audit measures a model of any layout in Python",
                    )
        return None

    def compare(self, expected: Shapes) -> None:
        """Require exactly the names and shapes of ``expected``."""
        for key in expected:
            if key not in self.shapes:
                raise self.unknown(key, "missing")
        for key, shape in self.shapes.items():
            if key not in expected:
                raise self.unexpected(key)
            if shape != expected[key]:
                raise self.misshapen(key, expected[key])

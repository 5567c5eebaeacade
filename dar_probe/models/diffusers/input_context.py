"""What a rule for one input of a transformer may look at, and what it returns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dar_probe.models.diffusers.latents import Latents, first

WAN_TOKENS = 512
TEXT_LIKE_LATENTS = {"MiniMaxMusic3Transformer1DModel"}  # one token of it for every step in time


@dataclass(frozen=True, kw_only=True)
class Cells:
    """One call: samples (N, ...), model times (N,) and sample ids (N,)."""

    x: Tensor
    time: Tensor
    ids: Tensor

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the rules may look at."""

    class_name: str
    config: dict[str, Any]
    latents: Latents
    tokens: int
    seed: int
    given: Mapping[str, Tensor]

    def text_tokens(self, *keys: str) -> int:
        """Return the number of text tokens that the settings fix under ``keys``, or the usual."""
        if self.config.get("added_kv_proj_dim"):
            return WAN_TOKENS  # Wan with an image finds the image's tokens behind these
        if self.class_name in TEXT_LIKE_LATENTS:
            return self.latents.tokens
        return first(self.config, keys) or self.tokens


Maker = Callable[[Cells], Any]
Rule = Callable[[Setting, bool], Maker | None]

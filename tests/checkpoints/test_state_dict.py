"""Plain names of what is in a file, and the words for what is not."""

import re

import pytest

from dar_probe.checkpoints import state_dict
from dar_probe.errors import CheckpointError


@pytest.mark.parametrize(
    ("names", "plain"),
    [
        (["blocks.0.w", "blocks.1.w", "decoder_blocks.0.w"],
         ["blocks.0.w", "blocks.1.w", "blocks.2.w"]),
        (["decoder_blocks.0.w", "decoder_blocks.3.w"], ["blocks.0.w", "blocks.3.w"]),
        (["blocks.11.w", "decoder_blocks.2.w"], ["blocks.11.w", "blocks.14.w"]),
        (["blocks.0.w", "decoder_blocks.w"], ["blocks.0.w", "decoder_blocks.w"]),
        (["module.model._orig_mod.blocks.0.w"], ["blocks.0.w"]),
        (["model"], ["model"]),
    ],
)  # fmt: skip
def test_plain_names(names, plain):
    """REPA's first releases count the blocks after the aligned one from zero again."""
    found = state_dict.plain_names(dict.fromkeys(names, 1), "'x'")
    assert list(found) == plain


@pytest.mark.parametrize("length", [10, 36, 38, 39, 40, 41, 200])
def test_what_is_there_instead_is_named_in_forty_letters_each(length):
    with pytest.raises(CheckpointError, match="neither ema, model nor") as caught:
        state_dict.choose({"k" * length: 1, 7: 2}, "auto", "'x'")
    shown = re.search(r"but ('.*'), a key of type int", str(caught.value))[1]
    assert len(shown) <= 40
    assert shown == f"'{'k' * length}'" if length <= 38 else len(shown) >= 38

"""Number types have one name each, and every usual spelling finds it."""

import pytest
import torch

from dar_probe.errors import UsageError
from dar_probe.runtime import dtype_names
from dar_probe.runtime.device import find_dtype
from dar_probe.training.config import from_dict

SPELLED = {
    torch.float32: ["float32", "fp32", "float", "torch.float32", "FP32", " float32 "],
    torch.float64: ["float64", "fp64", "double", "torch.float64"],
    torch.bfloat16: ["bfloat16", "bf16", "BF16", "torch.bfloat16"],
    torch.float16: ["float16", "fp16", "half", "torch.half"],
}


@pytest.mark.parametrize(
    ("dtype", "text"), [(dtype, text) for dtype, texts in SPELLED.items() for text in texts]
)
def test_every_spelling(dtype, text):
    assert find_dtype(text) is dtype
    assert f"torch.{dtype_names.dtype_name(text)}" == str(dtype)


@pytest.mark.parametrize("text", ["int8", "", "float8", "complex64", "nn", "bf"])
def test_what_is_no_number_type(text):
    with pytest.raises(UsageError, match="unknown dtype") as told:
        find_dtype(text)
    for names in SPELLED.values():
        assert names[0] in told.value.hint and names[1] in told.value.hint


@pytest.mark.parametrize("text", ["bf16", "bfloat16"])
def test_autocast_is_stored_under_one_name(text):
    assert from_dict({"autocast": text}).autocast == "bf16"

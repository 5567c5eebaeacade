"""The names of number types, and every usual spelling of them; imports no torch."""

from dar_probe.errors import UsageError

# The name that datasets hold, then how else people write it.
SPELLINGS = {
    "float32": ("fp32", "float"),
    "float64": ("fp64", "double"),
    "bfloat16": ("bf16",),
    "float16": ("fp16", "half"),
}
DTYPE_NAMES = tuple(SPELLINGS)


def dtype_name(text: str) -> str:
    """Return the one name of a number type: "bfloat16" for "bf16" and "torch.bfloat16" too.

    Raises:
        UsageError: no known type is called so.
    """
    short = text.strip().lower().removeprefix("torch.")
    for name, others in SPELLINGS.items():
        if short == name or short in others:
            return name
    known = [f"{name} ({', '.join(others)})" for name, others in SPELLINGS.items()]
    raise UsageError(f"unknown dtype {text!r}", hint=f"known: {', '.join(known)}")

"""The Triton kernels: right in Triton's interpreter, and accepted by its compiler."""

import builtins
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dar_probe.errors import UsageError
from dar_probe.routing import mixing

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION:UserWarning")
triton = pytest.importorskip("triton", minversion="3.7")  # 3.6 cannot interpret loops
POINTERS = {
    "_mixture": ("weights", "out"),
    "_products": ("vector", "out"),
    "_attend": ("query", "factors", "h", "weights"),
    "_attend_backward": (
        "grad_h", "query", "factors", "h", "weights", "grad_query", "grad_dots", "grad_factors",
    ),
}  # fmt: skip


def test_in_the_interpreter():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "interpreted.py"],
        cwd=Path(__file__).parents[1] / "helpers",
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", POINTERS)
def test_compiles(name, dtype, capability, tmp_path, monkeypatch):
    """At the width of XL, rows lie in registers (none is spilled) and are loaded 16 bytes wide."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from dar_probe.routing import kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(kernels, name)
    constants = kernels.constants([torch.empty(1, 1, 1152, dtype=dtype)])
    warps = constants.pop("num_warps")
    if name == "_attend":
        constants["SLOTS"] = 64
    short = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
    types = {argument: "i32" for argument in kernel.arg_names}
    types |= {argument: f"*{short}" for argument in POINTERS[name]}
    types |= {"addresses": "*i64", **dict.fromkeys(constants, "constexpr")}
    aligned = [
        i for i, argument in enumerate(kernel.arg_names)
        if argument == "width" or types[argument].startswith("*")
    ]  # fmt: skip
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
    source = ASTSource(kernel, types, constexprs=constants, attrs=attributes)
    made = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps}
    )
    assert "ld.global.v4.b32" in made.asm["ptx"]
    program = tmp_path / "cubin"
    program.write_bytes(made.asm["cubin"])
    told = subprocess.run(
        [triton.knobs.nvidia.cuobjdump.path, "-res-usage", program],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "STACK:0 " in told.stdout and "LOCAL:0 " in told.stdout


def test_without_triton(monkeypatch):
    found = builtins.__import__

    def refuse(name, *arguments, **more):
        if name == "triton":
            raise ImportError("no triton here")
        return found(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.delitem(sys.modules, "dar_probe.routing.kernels", raising=False)
    monkeypatch.delattr("dar_probe.routing.kernels", raising=False)
    monkeypatch.setenv("DAR_PROBE_KERNELS", "triton")
    with pytest.raises(UsageError, match="no triton here"):
        mixing.mixture(torch.ones(1, 1, 1), [torch.ones(1, 1, 4)])

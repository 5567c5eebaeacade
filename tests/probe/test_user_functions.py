"""Functions that users write: natural code works, and what is wrong is named."""

import subprocess
import sys
import textwrap

import pytest
import torch

import dar_probe as dp
from tests.test_audit import Stack, batch, loss

FEW = {"noise_levels": [0.2, 0.8], "samples": 2}


def noised(ids, noise_level):
    s = noise_level[:, None, None]
    return ((1 - s) * batch(ids, noise_level)[0][0],), {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_levels_come_as_the_module_computes(dtype):
    seen = []

    def watched(ids, noise_level):
        seen.append((noise_level.dtype, noise_level.device.type))
        x = batch(ids, noise_level)[0][0].to(dtype)
        return ((1 - noise_level)[:, None, None] * x,), {}

    dp.audit(Stack().to(dtype), batch=watched, **FEW)
    assert set(seen) == {(dtype, "cpu")}


def test_natural_code_gives_the_numbers_of_careful_code():
    torch.manual_seed(0)
    model = Stack()

    def careful(ids, noise_level):
        s = noise_level.to(torch.float32)[:, None, None]
        return ((1 - s) * batch(ids, noise_level)[0][0],), {}

    one, other = (dp.audit(model, batch=b, **FEW).dataset for b in (noised, careful))
    assert one.equals(other)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"batch": lambda i, s: ((torch.randn(len(i), 3, 5),), {})},
            "batch function is not pure: called twice for sample 0",
        ),
        (
            {
                "batch": lambda i, s: (
                    (torch.randn(len(i), 3, 5, generator=torch.Generator().manual_seed(0)),),
                    {},
                )
            },
            "other numbers when samples 0 and 1 are asked for together",
        ),
        ({"batch": lambda i, s: batch(i, s)[0]}, r"returned a tuple, expected \(args, kwargs\)"),
        ({"loss": lambda o, i, s: o.square().mean()}, "returned one number for all samples"),
        ({"loss": lambda o, i, s: o.square()}, r"returned a tensor of shape \(2, 3, 5\)"),
        ({"loss": lambda o, i, s: 1.0}, "returned a float"),
        (
            {"loss": lambda o, i, s: (o - torch.randn_like(o)).square().flatten(1).mean(1)},
            "loss function is not pure",
        ),
    ],
)
def test_what_breaks_the_contract_is_said_before_anything_is_measured(given, words):
    with pytest.raises(dp.DarProbeError, match=words) as caught:
        dp.audit(Stack(), **{"batch": batch, "loss": loss, **FEW, **given})
    assert caught.value.hint


def test_a_batch_that_shares_a_table_between_samples_is_pure():
    def shared(ids, noise_level):
        return (batch(ids, noise_level)[0][0] + torch.arange(5.0),), {}

    assert dp.audit(Stack(), batch=shared, **FEW).dataset.sizes["reader"] == 9


def test_one_sample_is_asked_for_no_second_row():
    rows = batch([0], None)[0][0]

    def table(ids, noise_level):
        return (rows[ids],), {}

    assert dp.audit(Stack(), batch=table, loss=loss, samples=1).dataset.sizes["sample"] == 1


FAULTY = """
    import torch
    from torch import nn
    import dar_probe as dp
    from tests.test_audit import Stack, batch, loss

    class Late(Stack):
        def forward(self, x):
            if len(x) > 2:
                raise RuntimeError("no such luck")  # {forward}
            return super().forward(x)

    def bad_batch(ids, level):
        return ((1 / 0) * ids,), {{}}  # {batch}

    def bad_loss(output, ids, level):
        return output.missing  # {loss}

    def bad_factory():
        raise KeyError("nothing here")  # {factory}

    def with_batch():
        return Stack(), bad_batch

    def with_loss():
        return Stack(), batch, bad_loss

    def late():
        return Late(), batch, loss
"""


@pytest.fixture
def faulty(tmp_path, monkeypatch):
    source = textwrap.dedent(FAULTY).format(
        forward="forward", batch="batch", loss="loss", factory="factory"
    )
    (tmp_path / "faulty.py").write_text(source)
    lines = {
        line.rpartition("# ")[2]: number
        for number, line in enumerate(source.splitlines(), 1)
        if "  # " in line
    }
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "faulty", raising=False)
    return tmp_path / "faulty.py", lines


CASES = [
    ("with_batch", "batch", "the batch function fails: ZeroDivisionError"),
    ("with_loss", "loss", "the loss function fails: AttributeError"),
    ("late", "forward", "the forward of Late fails: RuntimeError: no such luck"),
]


@pytest.mark.parametrize(("name", "line", "words"), CASES)
def test_an_exception_of_the_user_names_its_own_file_and_line(faulty, name, line, words):
    import faulty as module

    file, lines = faulty
    made = getattr(module, name)()
    model, given, judged = (*made, None)[:3]
    with pytest.raises(dp.UsageError, match=words) as caught:
        dp.audit(model, batch=given, loss=judged, noise_levels=[0.2, 0.8], samples=4)
    assert f'"{file}", line {lines[line]}' in caught.value.origin
    assert "dar_probe/" not in caught.value.origin


@pytest.mark.parametrize(
    ("name", "line", "words"),
    [CASES[0], ("bad_factory", "factory", "failed: KeyError: 'nothing here'")],
)
def test_the_command_line_shows_where_it_happened(faulty, name, line, words):
    file, lines = faulty
    ran = subprocess.run(
        [sys.executable, "-m", "dar_probe.cli", "audit", f"faulty:{name}"],
        cwd=file.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 2 and words in ran.stderr
    assert f"line {lines[line]}" in ran.stderr and file.name in ran.stderr
    assert "Traceback" not in ran.stderr and "dar_probe/" not in ran.stderr

"""Room for a model: what it needs, what there is, and the sentence where it does not fit."""

from pathlib import Path

import pytest
import torch

from dar_probe.checkpoints import memory_check
from dar_probe.errors import ProbeError
from dar_probe.runtime import memory

GIB = 2**30


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of files: write(name, text), below tmp_path; 100 GiB available at first."""
    monkeypatch.setattr(memory, "_INFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_OWN", tmp_path / "own")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "cgroup")

    def write(name, text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")

    write("meminfo", f"MemTotal: 999999999999 kB\nMemFree: 1 kB\nMemAvailable: {100 * 2**20} kB")
    return write


def test_needed_is_the_sum_of_the_weights_and_what_the_caller_adds():
    shapes = {"a": (3, 4), "b": (5,), "scalar": (), "none": (0, 7)}
    assert memory_check.needed(shapes, torch.float32) == 4 * (12 + 5 + 1)
    assert memory_check.needed(shapes, torch.bfloat16, activations=100) == 2 * 18 + 100
    model = torch.nn.Linear(30, 20)
    real = sum(p.nbytes for p in model.parameters())
    assert memory_check.needed({k: tuple(v.shape) for k, v in model.state_dict().items()},
                       torch.float32) == real  # fmt: skip


def test_a_machine_without_groups(machine):
    assert memory_check.available() == 100 * GIB


def test_the_tightest_group_of_v2_counts(machine):
    machine("own", "0::/a/b")
    machine("cgroup/a/memory.max", 10 * GIB)
    machine("cgroup/a/memory.current", 4 * GIB)
    machine("cgroup/a/memory.stat", f"anon 5\ninactive_file {GIB}\nactive_file 7")
    machine("cgroup/a/b/memory.max", "max")
    machine("cgroup/a/b/memory.current", 99)
    assert memory_check.available() == 7 * GIB
    machine("cgroup/a/b/memory.max", 3 * GIB)
    machine("cgroup/a/b/memory.current", 5 * GIB)
    assert memory_check.available() == 0


def test_a_container_sees_its_group_as_the_root(machine):
    machine("own", "0::/kubepods/pod1/not/visible")
    machine("cgroup/memory.max", 2 * GIB)
    machine("cgroup/memory.current", GIB)
    assert memory_check.available() == GIB


def test_the_memory_group_of_v1_counts_and_others_do_not(machine):
    machine("own", "11:cpu:/x\n4:memory:/x\n1:name=systemd:/x\n0::/")
    for folder, limit in (("", 9223372036854771712), ("/x", 6 * GIB)):
        machine(f"cgroup/memory{folder}/memory.limit_in_bytes", limit)
        machine(f"cgroup/memory{folder}/memory.usage_in_bytes", GIB)
        machine(f"cgroup/memory{folder}/memory.stat", "cache 1\ntotal_inactive_file 4096")
    assert memory_check.available() == 5 * GIB + 4096


def test_a_model_that_does_not_fit_is_refused_with_both_numbers(machine, monkeypatch):
    memory_check.require(100 * GIB)
    with pytest.raises(ProbeError) as caught:
        memory_check.require(100 * GIB + GIB // 2)
    assert str(caught.value) == "this needs 100.5 GiB on cpu, and 100.0 GiB are available"
    assert "--dtype bfloat16" in caught.value.hint and "cuda" not in caught.value.hint
    assert caught.value.exit_code == 4
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ProbeError) as caught:
        memory_check.require(101 * GIB)
    assert "--device cuda" in caught.value.hint


def test_a_card_has_what_is_free_and_what_torch_keeps_unused(monkeypatch):
    for name, value in (("mem_get_info", (3 * GIB, 80 * GIB)), ("memory_reserved", 2 * GIB),
                        ("memory_allocated", GIB), ("is_available", True)):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    assert memory_check.available("cuda:0") == 4 * GIB
    with pytest.raises(ProbeError, match="5.0 GiB on cuda:0, and 4.0 GiB") as caught:
        memory_check.require(5 * GIB, "cuda:0")
    assert "--device" not in caught.value.hint


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="only Linux tells")
def test_what_this_machine_has_is_what_the_kernel_says():
    rows = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total, have = (int(rows[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    # Others allocate meanwhile; nobody takes or frees a quarter of the machine.
    assert abs(memory._kernel() - have) < total / 4
    assert 0 < memory_check.available() <= total


def test_less_is_available_after_an_allocation():
    before = memory._kernel()
    block = torch.ones(2**27)  # 0.5 GiB, written
    taken = before - memory._kernel()
    assert block[0] == 1 and taken > 0.2 * GIB, taken / GIB

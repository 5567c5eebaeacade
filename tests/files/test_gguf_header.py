"""The header of a GGUF file: where its tensors lie, or why it is refused."""

import struct

import pytest

from dar_probe.files.gguf_header import packed
from tests.checkpoints import packed as writer


def made(path, alignment=32):
    tensors = {
        "a": (writer.F32, (2, 3), bytes(range(24))),
        "b": (writer.Q8_0, (4, 32), bytes(136)),
        "c": (writer.F16, (5,), bytes(10)),
    }
    pair = writer.text("general.alignment") + struct.pack("<II", 4, alignment)
    return writer.gguf(path, tensors, settings=pair, pairs=1, alignment=alignment)


@pytest.mark.parametrize("alignment", [1, 32, 48])
def test_tensors_lie_where_the_header_says(tmp_path, alignment):
    path = made(tmp_path / "x.gguf", alignment)
    with open(path, "rb") as file:
        found = packed(file)
        entry = found["a"]
        file.seek(entry.start)
        assert file.read(entry.bytes) == bytes(range(24))
    assert {name: (one.type, one.shape, one.bytes) for name, one in found.items()} == {
        "a": (0, (2, 3), 24), "b": (8, (4, 32), 136), "c": (1, (5,), 10),
    }  # fmt: skip
    assert found["b"].start - entry.start == -(-24 // alignment) * alignment


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (writer.text("b"), writer.text("a"), "a name twice"),
        (struct.pack("<IQ", 8, 32), struct.pack("<IQ", 8, 0), "a hole or an overlap before 'b'"),
        (struct.pack("<IQ", 8, 32), struct.pack("<IQ", 8, 64), "a hole or an overlap before 'b'"),
        (struct.pack("<IQ", 8, 32), struct.pack("<IQ", 8, 2**63), "a hole or an overlap"),
        (struct.pack("<IQQ", 2, 3, 2), struct.pack("<IQQ", 2, 0, 2), "is no F32"),
        (struct.pack("<IQQ", 2, 3, 2), struct.pack("<IQQ", 9, 3, 2), "has 9 dimensions"),
        (writer.text("a"), struct.pack("<Q", 2**40) + b"a", "has 1099511627776 bytes"),
    ],
)  # fmt: skip
def test_what_lies_elsewhere_is_refused(tmp_path, old, new, words):
    path = made(tmp_path / "x.gguf")
    raw = path.read_bytes()
    assert raw.count(old) == 1
    path.write_bytes(raw.replace(old, new))
    with open(path, "rb") as file, pytest.raises(ValueError, match=words):
        packed(file)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (writer.text("general.alignment") + struct.pack("<II", 4, 2**17), "alignment is 131072"),
        (writer.text("comfy.gguf.orig_shape.a") + struct.pack("<IIQ2f", 9, 6, 2, 2, 3), "is none"),
        (writer.text("comfy.gguf.orig_shape.a") + struct.pack("<IIQ9i", 9, 5, 9, *[1] * 9), "none"),
    ],
)  # fmt: skip
def test_settings_that_are_none_are_refused(tmp_path, settings, words):
    tensors = {"a": (writer.F32, (2, 3), bytes(24))}
    path = writer.gguf(tmp_path / "x.gguf", tensors, settings=settings, pairs=1)
    with open(path, "rb") as file, pytest.raises(ValueError, match=words):
        packed(file)


@pytest.mark.parametrize(
    "settings",
    [writer.text("general.alignment") + struct.pack("<I", 8) + writer.text("64"),
     writer.text("other") + struct.pack("<II", 4, 64),
     writer.text("comfy.gguf.orig_shape.a") + struct.pack("<I", 8) + writer.text("64")],
)  # fmt: skip
def test_settings_that_are_not_asked_for_are_passed_over(tmp_path, settings):
    tensors = {"a": (writer.F32, (2, 3), bytes(24)), "b": (writer.F32, (1,), bytes(4))}
    path = writer.gguf(tmp_path / "x.gguf", tensors, settings=settings, pairs=1)
    with open(path, "rb") as file:
        assert packed(file)["b"].start - packed(file)["a"].start == 32


def test_a_name_that_is_no_text_is_refused(tmp_path):
    path = made(tmp_path / "x.gguf")
    path.write_bytes(path.read_bytes().replace(writer.text("c"), struct.pack("<Q", 1) + b"\xff"))
    with open(path, "rb") as file, pytest.raises(ValueError, match="codec can't decode"):
        packed(file)

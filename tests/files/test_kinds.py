"""Names from files as they are shown, and zip archives at the edges of what is read."""

import io
import zipfile

import pytest
import torch

from dar_probe.errors import CheckpointError
from dar_probe.files import kinds
from dar_probe.files.text import quote


@pytest.mark.parametrize(
    ("text", "limit", "shown"),
    [
        ("plain", 120, "'plain'"),
        ("a" * 118, 120, f"'{'a' * 118}'"),
        ("0123456789", 12, "'0123456789'"),
        ("abcdefghij", 11, "'abc...hij'"),
        ("it's", 120, '"it\'s"'),
        (17, 120, "'17'"),
        ("a\nb", 120, r"'a\nb'"),
        ("\ud800", 120, r"'\ud800'"),
    ],
)
def test_quote(text, limit, shown):
    assert quote(text, limit) == shown


@pytest.mark.parametrize("limit", [11, 12, 40, 60, 119, 120])
@pytest.mark.parametrize("length", [1, 9, 10, 11, 12, 119, 120, 121, 5000])
def test_a_quoted_text_keeps_both_ends_and_as_much_as_fits(length, limit):
    text = "".join(chr(ord("a") + at % 26) for at in range(length))
    shown = quote(text, limit)
    assert len(shown) <= limit
    if length + 2 <= limit:
        assert shown == f"'{text}'"
    else:
        begin, end = shown.strip("'").split("...")
        assert text.startswith(begin) and text.endswith(end)
        assert len(shown) >= limit - 2 and abs(len(begin) - len(end)) <= 1


def archive(entries=3, *, comment=b"", behind=b""):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for at in range(entries):
            made.writestr(f"x/{at}", b"abc")
        made.comment = comment
    return file.getvalue() + behind


def check(data):
    kinds.check_directory(io.BytesIO(data), len(data), "'x'")


def zip64(data, *, where=0, claimed=0):
    """Put the records of large archives in front of the usual end; moved by ``where``."""
    end = data[-22:]
    entries, length, start = (
        int.from_bytes(end[a:b], "little") for a, b in ((10, 12), (12, 16), (16, 20))
    )
    position = len(data) - 22
    record = b"PK\x06\x06" + (44).to_bytes(8, "little") + bytes(4) + bytes(8)
    for number in (entries, entries, length, start + claimed):
        record += number.to_bytes(8, "little")
    locator = b"PK\x06\x07" + bytes(4) + (position + where).to_bytes(8, "little") + b"\1\0\0\0"
    assert (len(record), len(locator)) == (56, 20)
    return data[:-22] + record + locator + end


@pytest.mark.parametrize("entries", [0, 1, 3])
def test_a_directory_where_every_reader_looks_for_it(entries):
    check(archive(entries))
    check(zip64(archive(entries)))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (archive(comment=b"two directories may hide in it"), "cut short, or has something after"),
        (archive(behind=b"x"), "cut short, or has something after"),
        (archive()[:-1], "cut short, or has something after"),
        (b"x" + archive(), "directory is not where it says"),
        (zip64(archive(), where=1), "end record is not where it says"),
        (zip64(archive(), claimed=1), "directory is not where it says"),
        (zip64(archive()).replace(b"PK\x06\x06", b"PK\x06\x08"), "end record is not where"),
    ],
)
def test_a_directory_that_readers_may_see_differently(data, words):
    with pytest.raises(CheckpointError, match=words):
        check(data)


def test_a_directory_of_too_many_entries(monkeypatch):
    monkeypatch.setattr(kinds, "MAX_ENTRIES", 3)
    check(archive(3))
    with pytest.raises(CheckpointError, match="lists 4 entries"):
        check(archive(4))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_only_the_protocol_that_torch_reads_safely(protocol, tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"weight": torch.zeros(2)}, path, pickle_protocol=protocol)
    with kinds.open_file(path) as file:
        if protocol == 2:
            assert kinds.check(file, path) == "zip"
        else:
            with pytest.raises(CheckpointError, match=f"pickled with protocol {protocol}"):
                kinds.check(file, path)

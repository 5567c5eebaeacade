"""A file is absent, the old one or the new one; and who may write where is known beforehand."""

import fcntl
import os

import pytest

from dar_probe.errors import InUseError, UsageError
from dar_probe.files import atomic


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_text_is_written_as_utf8_and_replaced_whole(tmp_path):
    path = tmp_path / "a.txt"
    for text in ("größer\n", "kleiner"):
        atomic.write_text(path, text)
        assert path.read_bytes() == text.encode()
    assert names(tmp_path) == ["a.txt"]


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(target):
        target.write_text("new")
        assert path.read_text() == "old" and target.parent == path.parent

    atomic.write_atomically(path, write)
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [OSError(28, "full"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(target):
        target.write_text("half")
        raise error

    with pytest.raises((UsageError, KeyboardInterrupt)):
        atomic.write_atomically(path, write)
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_file_and_folder_reach_the_disk_in_this_order(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(atomic, "sync", lambda path: done.append(path.name))
    replace = os.replace
    monkeypatch.setattr(
        os, "replace", lambda a, b: (done.append(f"to {b.name}"), replace(a, b)) and None
    )
    atomic.write_text(tmp_path / "a.txt", "x")
    assert done == [f".a.txt.{os.getpid()}.tmp", "to a.txt", tmp_path.name]


def test_a_device_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="is a device or a pipe"):
        atomic.write_text(tmp_path / "pipe", "x")
    assert names(tmp_path) == ["pipe"]


def test_a_folder_is_held_by_one_and_made_where_it_is_missing(tmp_path):
    folder = tmp_path / "a" / "b"
    lock = atomic.hold(folder, folder)
    assert folder.is_dir()
    with pytest.raises(InUseError, match="being written by another process"):
        atomic.hold(folder, folder)
    os.close(lock)
    os.close(atomic.hold(folder, folder))


def test_a_folder_that_was_replaced_before_the_lock_is_not_held(tmp_path, monkeypatch):
    """Whoever held it may remove it when done: a lock on what is gone keeps nobody out."""
    folder, lock, rounds = tmp_path / "a", fcntl.flock, []

    def late(descriptor, how):
        rounds.append(os.fstat(descriptor).st_ino)
        if len(rounds) == 1:
            folder.rename(tmp_path / "gone")
            folder.mkdir()
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    held = atomic.hold(folder, folder)
    assert len(rounds) == 2
    assert os.path.samestat(os.fstat(held), os.stat(folder))
    os.close(held)


def test_a_link_is_not_held(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    with pytest.raises(UsageError, match="cannot be written"):
        atomic.hold(tmp_path / "link", tmp_path / "link")


def test_places_where_something_can_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "new", tmp_path / "new" / "below", tmp_path / "file"):
        atomic.check_place(place)
    atomic.check_place(tmp_path / ("n" * 255))
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("a\0b", "a NUL byte is in its name"),
        ("n" * 256, "File name too long"),
        ("ö" * 128, "File name too long"),
        ("file/below", "Not a directory"),
        ("file/below/more", "Not a directory"),
        ("link", "its link leads nowhere"),
        ("link/below", "its link leads nowhere"),
        ("loop/below", "Too many levels of symbolic links"),
    ],
)
def test_places_where_nothing_can_be_made(tmp_path, place, why):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UsageError, match=f"cannot be written: {why}"):
        atomic.check_place(tmp_path / place)


def test_a_folder_without_the_right_to_write_is_no_place(tmp_path, monkeypatch):
    asked = []

    def access(path, mode, *, effective_ids):
        asked.append((path, mode, effective_ids))
        return False

    monkeypatch.setattr(os, "access", access)
    with pytest.raises(UsageError, match="Permission denied"):
        atomic.check_place(tmp_path / "new" / "below")
    assert asked == [(str(tmp_path), os.W_OK, atomic.EFFECTIVE)]


def test_the_identity_changes_when_a_file_is_replaced(tmp_path):
    path = tmp_path / "a"
    assert atomic.identity(path) is None
    path.write_text("x")
    before = atomic.identity(path)
    assert atomic.identity(path) == before is not None
    atomic.write_text(path, "x")
    assert atomic.identity(path) != before

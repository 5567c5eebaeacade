"""Every command that writes, on a full disk, where it must not write, stopped, and in company."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from dar_probe.cli import audit
from dar_probe.errors import UsageError
from dar_probe.files import atomic as written
from dar_probe.files.analysis_folder import OutputFolder, check_target
from tests.helpers.shell import without_progress
from tests.hostile import disk
from tests.hostile.commands import COMMANDS, Command, call, files, forked, hidden, inputs, state

NOBODY = 65534
every = pytest.mark.parametrize("name", COMMANDS)
each = pytest.mark.parametrize("name", [name for name in COMMANDS if name != "steps"])
every_folder = pytest.mark.parametrize("name", [c.name for c in COMMANDS.values() if c.kind])


@pytest.fixture(scope="module")
def home():
    """Return a folder that anybody may read: some tests give up root's rights."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture(scope="module")
def wanted(home):
    with inputs(home) as found:
        yield found


def earlier(command: Command, out: Path) -> dict[str, bytes]:
    """Put an earlier output of a command's kind at ``out``, with other contents."""
    out.mkdir()
    names = {
        "analysis": ("summary.json", "report.html"),
        "comparison": ("comparison.html", "comparison.csv"),
        "": ("dilution.png", "dilution.pdf", "notes.txt"),
    }
    for name in names[command.kind]:
        # Without a byte, a figure makes no room for others when it is replaced.
        (out / name).write_text("" if name.startswith("dilution") else "an earlier one")
    return files(out)


def old_or_new(command: Command, out: Path, old: dict[str, bytes], new: dict[str, bytes]) -> str:
    """Tell what lies at ``out``; of figures, each file is the one or the other."""
    found = files(out)
    if command.kind:
        assert found in (old, new)
    for name, content in found.items():
        if not Path(name).name.startswith("."):
            assert content in (old.get(name), new.get(name)), name
    return "new" if found.items() >= new.items() else "old"


def finishes(command: Command, home: Path, out: Path, new: dict[str, bytes]) -> None:
    """Check that the same command, again, gives the same as one that nothing had disturbed."""
    done = call(command.line(home, out))
    assert done.code == 0, done.stderr
    assert files(out).items() >= new.items()
    if command.kind:
        assert files(out) == new
    assert hidden(out.parent) == set()


# --- the disk is full ---------------------------------------------------------------------------


@every
def test_a_full_disk(name, home, wanted, tmp_path):
    """A tmpfs without room for the first file, or for the last."""
    if reason := disk.lacking(tmp_path):
        pytest.skip(f"no disk can be mounted: {reason}; the limit below is met all the same")
    command, new = COMMANDS[name], wanted[name].files
    order = sorted(new, key=lambda file: (home / name / file).stat().st_mtime_ns)
    needs = [disk.pages(len(new[file])) for file in order]

    def body() -> None:
        disk.mount(tmp_path)
        out = tmp_path / "out"
        old = earlier(command, out)
        told = []
        for room in (needs[0] - 1, sum(needs) - 1):
            shutil.rmtree(out)
            earlier(command, out)
            disk.resize(tmp_path, room)
            told.append(call(command.line(home, out)).refused())
            assert "No space left on device" in told[-1] and "free space" in told[-1]
            assert old_or_new(command, out, old, new) == "old"
            assert hidden(tmp_path) <= ({".out.partial"} if command.resumes else set())
        assert len(set(told)) == 2, told
        if command.resumes:
            disk.resize(tmp_path, 1000)
            finishes(command, home, out, new)

    forked(body)


@each
def test_a_limit_on_the_size_of_files(name, home, wanted, tmp_path):
    command, new = COMMANDS[name], wanted[name].files
    sizes = sorted(map(len, new.values()))
    out = tmp_path / "out"
    old = earlier(command, out)

    def body() -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        for limit in (10, sizes[-1] - 1):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            assert "File too large" in call(command.line(home, out)).refused()
            assert old_or_new(command, out, old, new) == "old"
            assert hidden(tmp_path) <= ({".out.partial"} if command.resumes else set())
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        finishes(command, home, out, new)

    forked(body)


def test_a_full_disk_costs_a_junit_file_but_not_the_analysis(home, wanted, tmp_path):
    line = COMMANDS["audit"].line(home, tmp_path / "out", "--junit", str(tmp_path / "ci.xml"))
    (tmp_path / "ci.xml").write_text("earlier")

    def body() -> None:
        real = written.sync

        def full(path: Path) -> None:
            if ".ci.xml." in path.name:
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, -1))
                path.write_text("no room")
            real(path)

        written.sync = full
        assert "ci.xml" in call(line).refused()

    forked(body)
    assert files(tmp_path / "out") == wanted["audit"].files
    assert (tmp_path / "ci.xml").read_text() == "earlier" and hidden(tmp_path) == set()


# --- where it must not write --------------------------------------------------------------------


@each
def test_a_folder_that_is_read_only(name, home, wanted):
    """Root may write anywhere, so the fork gives up its rights."""
    command, new = COMMANDS[name], wanted[name].files
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        old = earlier(command, out)

        def body(closed: Path) -> None:
            if not command.kind and closed != out:
                return  # files in a folder are its own business
            closed.chmod(0o555)
            if os.geteuid() == 0:
                os.seteuid(NOBODY)
            assert "Permission denied" in call(command.line(home, out)).refused()
            assert files(out) == old and hidden(Path(folder)) == set()

        if os.geteuid() == 0:
            os.chown(out, NOBODY, -1)
        Path(folder).chmod(0o755)
        forked(lambda: body(Path(folder)))
        Path(folder).chmod(0o777)
        forked(lambda: body(out))
        out.chmod(0o755)
        finishes(command, home, out, new)


def link_to(target: str):
    return lambda path: path.symlink_to(target)


TARGETS = {
    "a file": lambda path: path.write_text("mine"),
    "a link to nothing": link_to("nowhere"),
    "a link to itself": link_to("target"),
    "a link to a file": link_to("/etc/passwd"),
    "a pipe": os.mkfifo,
    "/": None,
    ".": None,
    "": None,
    "x" * 300: None,
    f"new/{'x' * 300}/new": None,
    "/proc/dar-probe-out": None,
}


@every
def test_a_target_that_is_no_folder_for_it(subtests, name, home, wanted, tmp_path, monkeypatch):
    command = COMMANDS[name]
    monkeypatch.chdir(tmp_path)
    for target, make in TARGETS.items():
        with subtests.test(target=target):
            if make is not None:
                make(tmp_path / "target")
            elif not command.kind and target in ("/", ".", ""):
                continue  # figures lie among other files, there too
            before = state(tmp_path)
            call(command.line(home, "target" if make else target)).refused()
            assert state(tmp_path) == before, target
            (tmp_path / "target").unlink(missing_ok=True)


def test_devices_and_impossible_names_are_no_targets(subtests):
    """Asked of the check alone: where it failed, root would lose the device."""
    for target in ("/dev/null", "/dev/full", "/dev/stdout", "nul\0byte"):
        with subtests.test(target=target):
            with pytest.raises(UsageError):
                check_target(Path(target))
    for target in ("/dev/null", "/dev/stdout"):
        with subtests.test(file=target):
            with pytest.raises(UsageError, match="takes a file|device"):
                audit._check_file(Path(target))


@pytest.mark.parametrize("target", ["pipe", "link", "folder", "x" * 300])
def test_a_junit_file_takes_the_place_of_no_device(home, wanted, tmp_path, monkeypatch, target):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("folder").mkdir()
    Path("link").symlink_to(home / "rows.npz")
    before = sorted(tmp_path.rglob("*"))
    call(COMMANDS["audit"].line(home, "out", "--junit", target)).refused()
    assert sorted(tmp_path.rglob("*")) == before
    assert Path("link").is_symlink()


def test_nothing_takes_the_place_of_a_device(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="a device or a pipe"):
        written.write_text(tmp_path / "pipe", "text")
    assert (tmp_path / "pipe").is_fifo() and hidden(tmp_path) == set()


def test_a_link_to_a_folder_stays_one(home, wanted, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "out"
    link.symlink_to("elsewhere")
    for _ in range(2):
        finishes(COMMANDS["report"], home, link, wanted["report"].files)
    assert link.is_symlink() and files(tmp_path / "elsewhere") == wanted["report"].files


# --- stopped ------------------------------------------------------------------------------------


def stop(command: Command, home: Path, out: Path, number: int, at: int) -> None:
    """Run a command that gets a signal when it syncs for the ``at``-th time."""
    count, real = 0, os.fsync

    def counting(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count == at:
            os.kill(os.getpid(), number)
        real(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", counting)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        done = call(command.line(home, out))
    assert done.code == 130 and (done.named == [] or not command.kind), done
    said = without_progress(done.stderr)
    assert said.startswith("Interrupted.\nHint: ") and said.count("\n") == 2


@each
def test_stopped_at_several_moments(name, home, wanted, tmp_path):
    """By Ctrl-C, by a scheduler and by force, over an earlier output."""
    command, new = COMMANDS[name], wanted[name].files
    out = tmp_path / "out"
    syncs = wanted[name].syncs
    old = earlier(command, out)
    shards = {".out.partial"} if command.resumes else set()
    moments = ((signal.SIGINT, 1), (signal.SIGTERM, syncs // 2), (signal.SIGINT, syncs - 1))
    for number, at in moments:
        shutil.rmtree(tmp_path / ".out.partial", ignore_errors=True)
        died = forked(lambda n=number, at=at: stop(command, home, out, n, at))
        assert died == (number if number == signal.SIGTERM else 0)
        old_or_new(command, out, old, new)
        assert hidden(tmp_path) <= shards
    shutil.rmtree(out)
    old = earlier(command, out)
    assert forked(lambda: stop(command, home, out, signal.SIGKILL, syncs // 2)) == signal.SIGKILL
    assert old_or_new(command, out, old, new) == "old" or not command.kind
    for leftover in out.glob(".*.tmp") if not command.kind else ():
        leftover.unlink()  # nobody cleans up after a SIGKILL, and nobody stumbles over this
    finishes(command, home, out, new)


def test_a_command_that_ignores_sigterm_goes_on_doing_so(home, wanted, tmp_path):
    """As under ``trap '' TERM``: who started us has said so."""
    out = tmp_path / "out"

    def body() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        real = os.fsync
        os.fsync = lambda d: (os.kill(os.getpid(), signal.SIGTERM), real(d))[1]
        assert call(COMMANDS["report"].line(home, out)).code == 0

    assert forked(body) == 0 and files(out) == wanted["report"].files


# --- in company ---------------------------------------------------------------------------------


@every_folder
def test_two_processes_on_one_folder(name, home, wanted, tmp_path):
    command, out = COMMANDS[name], tmp_path / "out"
    old = earlier(command, out)
    key = {"another": "one"} if command.resumes else None
    with OutputFolder(out, key=key, kind=command.kind) as held:
        held.save(0, {})
        before = state(tmp_path)
        assert "written by another process" in call(command.line(home, out)).refused()
        assert state(tmp_path) == before
        held.publish(lambda fresh: [shutil.copy(p, fresh) for p in out.iterdir()])
    assert files(out) == old
    finishes(command, home, out, wanted[name].files)


# --- stdout and stderr --------------------------------------------------------------------------


def streamed(line: list[str], stdout: int | None, stderr: int | None = None) -> tuple[int, str]:
    """Run a command with real file descriptors in a fork; return its exit code and stderr."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        for number, target in ((1, stdout), (2, writing if stderr is None else stderr)):
            if target is None:
                os.close(number)
            else:
                os.dup2(target, number)
        from dar_probe import cli

        sys.stdout = None if stdout is None else open(1, "w", closefd=False)
        sys.stderr, sys.argv = open(2, "w", closefd=False), ["dar-probe", *line]
        code = 99
        try:
            cli.main()
        except SystemExit as leaving:
            code = leaving.code
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = without_progress(pipe.read().decode())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), told


@pytest.fixture
def full():
    descriptor = os.open("/dev/full", os.O_WRONLY)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def unread():
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


@pytest.mark.parametrize("name", ["report", "figures", "compare", "inspect"])
def test_output_to_a_full_disk(name, home, wanted, tmp_path, full, unread):
    out = tmp_path / "out"
    line = ["inspect", f"{home}/model-1.pt", "--json"]
    if name in COMMANDS:
        line = COMMANDS[name].line(home, out, *["--json"] * (name == "compare"))
    code, told = streamed(line, full)
    assert code == 2 and told.startswith("Error: the output cannot be written: No space left")
    assert told.splitlines()[1].startswith("Hint: ") and told.count("\n") == 2
    whole = name not in COMMANDS or files(out) == wanted[name].files
    assert whole, "files are written all the same"
    shutil.rmtree(out, ignore_errors=True)
    assert streamed(line, unread) == (0, ""), "a reader that has seen enough is no error"
    assert name not in COMMANDS or files(out) == wanted[name].files
    assert streamed(line, None) == (0, "")


def test_a_verdict_does_not_hang_on_a_reader(home, wanted, tmp_path, full, unread):
    line = COMMANDS["audit"].line(home, tmp_path / "out", "--fail-on", "inflation > 0")
    assert streamed(line, unread) == (1, "")
    assert streamed(line, full)[0] == 1
    refused = ["compare", str(tmp_path / "nothing.nc"), str(tmp_path / "nothing.nc")]
    assert streamed(refused, unread, full)[0] == 3, "nobody can be told, but the code is right"


def test_the_end_of_a_process_adds_nothing():
    """Python flushes once more at its end, and its own words and exit code are not ours."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "dar_probe.cli", "--version"],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 2, done.stderr

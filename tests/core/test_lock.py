"""One command at a time in a folder: who is refused, and what a dead holder leaves behind."""

import errno
import json
import os
import socket
import subprocess
import sys
import time

import pytest

from dit_shd.core import lock
from dit_shd.core.errors import UserError
from dit_shd.core.lock import Lock, alone_in, new_folder

HOLDER = """
import sys, time
from pathlib import Path
from dit_shd.core.lock import Lock
lock = Lock(Path(sys.argv[1]), "dit-shd train")
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def file(request, tmp_path):
    return tmp_path / "run" / getattr(request, "param", ".lock")


@pytest.fixture
def holder(file, root):
    """Another process that holds the lock."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(file)], stdout=subprocess.PIPE, env=environment)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()


def left_behind(file, **changes):
    """A lock file of a process that is no more."""
    file.parent.mkdir(exist_ok=True)
    told = {"what": "dit-shd train", "pid": 2**22 + 5, "host": socket.gethostname(), "start": 1, "since": time.time()}
    file.write_text(json.dumps({**told, **changes}))


def no_flock(monkeypatch):
    """A file system without flock: what the file says is all there is."""
    import fcntl

    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_the_second_is_refused_with_pid_and_host_until_the_first_ends(file, holder):
    with pytest.raises(UserError, match=rf"run: in use by dit-shd train, pid {holder.pid} on {socket.gethostname()}"):
        Lock(file, "dit-shd train")
    holder.kill()
    holder.wait()
    assert file.exists(), "kill -9 leaves the file"
    with Lock(file, "dit-shd train"):
        assert json.loads(file.read_text())["pid"] == os.getpid()
    assert not file.exists()


def test_a_lock_goes_with_its_last_holder(file):
    first, again = Lock(file, "a"), Lock(file, "b")  # a notebook that begins anew
    first.release()
    first.release()
    assert file.exists()
    del again
    assert not file.exists()


def test_a_lock_whose_folder_was_moved_is_out_of_place(file):
    lock = Lock(file, "a")
    assert lock.is_in_place
    moved = file.parent.rename(file.parent.with_name("moved"))
    assert not lock.is_in_place
    with Lock(file, "b") as other:
        assert other.is_in_place and not lock.is_in_place
    lock.release()
    assert (moved / file.name).exists() and lock.is_in_place


def test_a_script_that_ends_leaves_no_lock(file, root):
    """Also where it keeps what holds it, as a notebook keeps an error."""
    code = HOLDER.replace("time.sleep(60)", "sys.last_value = [lock, sys]")
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "") and not file.exists()


def test_a_folder_of_several_names_has_one_lock(file):
    """A notebook that names its folder by a link would be told to end itself."""
    first = Lock(file, "a")
    file.parent.parent.joinpath("link").symlink_to(file.parent)
    again = Lock(file.parent.parent / "link" / file.name, "b")
    first.release()
    assert file.exists()
    again.release()
    assert not file.exists()


@pytest.mark.parametrize("flock", [True, False])
@pytest.mark.parametrize("left", [{}, {"pid": os.getpid()}, {"pid": 1, "start": 2}], ids=["dead", "mine", "reused"])
def test_what_a_dead_process_left_is_taken_over_and_said(file, monkeypatch, caplog, left, flock):
    """A dead pid, and a pid that is given again: the start of the process tells."""
    left_behind(file, **left)
    if not flock:
        no_flock(monkeypatch)
    caplog.set_level("INFO")
    with Lock(file, "x"):
        assert "which is gone" in caplog.text
    assert not file.exists()


def test_without_flock_the_file_is_believed(file, holder, monkeypatch):
    no_flock(monkeypatch)
    with pytest.raises(UserError, match=f"pid {holder.pid}"):
        Lock(file, "x")


def test_another_hosts_lock_is_held_while_its_heartbeat_is_recent(file, caplog):
    left_behind(file, host="elsewhere", pid=7)
    with pytest.raises(UserError, match=rf"pid 7 on elsewhere, .* If it is gone, try again .* or remove {file}"):
        Lock(file, "x")
    silent = time.time() - lock.TIMEOUT_SECONDS - 5
    os.utime(file, (silent, silent))
    caplog.set_level("INFO")
    with Lock(file, "x"):
        assert "pid 7 on elsewhere, which is gone" in caplog.text


def test_a_holder_gives_signs_of_life(file, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.01)
    with Lock(file, "x"):
        os.utime(file, (0, 0))
        end = time.monotonic() + 10
        while file.stat().st_mtime == 0 and time.monotonic() < end:
            time.sleep(0.01)
        assert file.stat().st_mtime > 0


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"pid": "x"}', "\x00" * 99])
def test_a_file_that_tells_nothing_is_no_lock(file, text):
    file.parent.mkdir()
    file.write_text(text)
    with Lock(file, "x"):
        assert json.loads(file.read_text())["what"] == "x"


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Lock(tmp_path / "file" / ".lock", "x")
    (tmp_path / ".lock").symlink_to(tmp_path / "file")
    with pytest.raises(UserError, match="cannot be written"):
        Lock(tmp_path / ".lock", "x")


def test_what_fails_in_the_main_process_fails_in_all(file):
    """A disk that fails there is a line, too (two processes: test_guard.py, test_stop.py)."""
    from dit_shd.core.distributed import run_on_main

    assert run_on_main(lambda: "plain data") == "plain data"
    with pytest.raises(UserError, match="the disk is gone"):
        run_on_main(lambda: (_ for _ in ()).throw(OSError("the disk is gone")))
    with lock.locked(file, "x"):
        assert file.exists()
    assert not file.exists()


@pytest.mark.parametrize("file", [".out.lock"], indirect=True)
def test_a_folder_is_written_by_one_command_at_a_time(holder, file):
    """Two exports into one folder left the files of two models in it."""
    out = file.parent / "out"
    with pytest.raises(UserError, match=r"in use by dit-shd train, pid \d+"), new_folder(out, "dit-shd export"):
        pytest.fail("was let in")
    assert not out.exists()
    holder.kill()
    holder.wait()
    with new_folder(out, "dit-shd export") as part:
        (part / "model").touch()
    assert [path.name for path in file.parent.iterdir()] == ["out"] and (out / "model").is_file()


def test_a_folder_that_cannot_be_opened_is_nobody_s_to_wait_for(tmp_path):
    """What is done in it says what is wrong, if anything is: an evaluation of hours is at its end."""
    done = []
    with alone_in(tmp_path / "gone"):
        done.append(1)
    assert done

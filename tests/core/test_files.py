"""Files and folders that appear whole."""

import errno
import os
from pathlib import Path

import pytest

from dit_shd.core import files
from dit_shd.core.errors import UserError
from dit_shd.core.files import OLD, PART, atomic_folder, recover, remove, write_text


def test_a_folder_to_write_may_be_the_one_that_one_is_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with atomic_folder(Path()) as part:
        (part / "file").write_text("whole")
    assert (tmp_path / "file").read_text() == "whole"


def test_a_link_is_followed_however_often_it_is_written(tmp_path):
    """As of a student's folder that was moved to a larger disk."""
    (tmp_path / "disk" / "student").mkdir(parents=True)
    (tmp_path / "student").symlink_to(tmp_path / "disk" / "student")
    (tmp_path / "log").symlink_to(tmp_path / "disk" / "log")
    for number in range(3):
        with atomic_folder(tmp_path / "student") as part:
            (part / "file").write_text(str(number))
        write_text(tmp_path / "log", str(number))
        for link, file in (("student", "student/file"), ("log", "log")):
            assert (tmp_path / link).is_symlink() and (tmp_path / "disk" / file).read_text() == str(number)
    assert {path.name for path in (tmp_path / "disk").iterdir()} == {"student", "log"}
    remove(tmp_path / "student")
    assert not (tmp_path / "student").is_symlink() and (tmp_path / "disk" / "student" / "file").exists()


def test_a_link_to_a_disk_that_is_not_there_and_a_device_are_refused(tmp_path):
    (tmp_path / "student").symlink_to(tmp_path / "disk" / "student")
    os.mkfifo(tmp_path / "pipe")
    for name, words in (("student", "is a link to .*, whose folder is not there"), ("pipe", "found a device")):
        with pytest.raises(UserError, match=words):
            write_text(tmp_path / name, "text")
        with pytest.raises(UserError, match=words), atomic_folder(tmp_path / name):
            pass
    assert {path.name for path in tmp_path.iterdir()} == {"student", "pipe"}


def test_leftovers_of_others_are_theirs(tmp_path):
    for name in (".notes.old", ".rsync.part", f".log.9{PART}"):
        (tmp_path / name).write_text(name)
    (tmp_path / f".student{OLD}").mkdir()
    (tmp_path / ".results.part").mkdir()
    recover(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".notes.old", ".rsync.part", ".results.part", "student"}


@pytest.mark.parametrize(("files", "synced"), [(3, 5), (300, 1)])
def test_a_folder_of_many_files_is_written_to_disk_at_once(tmp_path, monkeypatch, files, synced):
    """One after the other takes minutes for tens of thousands of images."""
    calls = []
    monkeypatch.setattr(os, "fsync", calls.append)
    monkeypatch.setattr(os, "sync", lambda: calls.append("all"))
    with atomic_folder(tmp_path / "images") as folder:
        for number in range(files):
            (folder / f"{number}.png").write_bytes(b"x")
    assert len(list((tmp_path / "images").iterdir())) == files
    assert len(calls) - calls.count("all") == synced and ("all" in calls) == (files > 256)


@pytest.mark.parametrize("there", [True, False])
def test_what_is_moved_to_a_link_goes_where_it_leads(tmp_path, there):
    """Images of hours could not be published into a folder that was a link, and a link of an npz was replaced."""
    part, link, big = tmp_path / "part", tmp_path / "link", tmp_path / "big"
    link.symlink_to(big)
    if there:
        big.mkdir()
    part.mkdir()
    for name in ("0.png", "1.png"):
        (part / name).write_text(name)
    files.move(part, link)
    assert link.is_symlink() and {file.name for file in big.iterdir()} == {"0.png", "1.png"} and not part.exists()
    (tmp_path / "x").write_text("x")
    (tmp_path / "of_x").symlink_to(big / "x")
    files.move(tmp_path / "x", tmp_path / "of_x")
    assert (tmp_path / "of_x").is_symlink() and (big / "x").read_text() == "x"


def test_what_is_moved_to_another_disk_is_copied(tmp_path, monkeypatch):
    """A folder on a disk that is mounted there, of which some files have been moved before a kill."""
    replace, part, mounted = os.replace, tmp_path / "part", tmp_path / "mounted"

    def across(source, place):
        if Path(source).parent == part:
            raise OSError(errno.EXDEV, "another disk")
        replace(source, place)

    monkeypatch.setattr(os, "replace", across)
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == mounted)
    part.mkdir()
    mounted.mkdir()
    (mounted / "0.png").write_text("0")
    (part / "1.png").write_text("1")
    files.move(part, mounted)
    assert {file.name: file.read_text() for file in mounted.iterdir()} == {"0.png": "0", "1.png": "1"}
    assert not part.exists()

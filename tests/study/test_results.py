"""Rows: read strictly, taken in by whoever comes first."""

import subprocess
import sys

import pytest

from dit_shd.core.errors import UserError
from dit_shd.study.results import CellResult, collect, read_results, write_row


def row(cell, **changes):
    return CellResult(cell=cell, variant=f"v{cell}", seed=0, sha256="a", status="done", **changes)


def folders(tmp_path, *rows):
    found = []
    for each in rows:
        found.append(tmp_path / f"cell{each.cell}")
        found[-1].mkdir(exist_ok=True)
        write_row(found[-1], each)
    return found


def test_rows_are_collected_in_order_and_newer_ones_replace_older_ones(tmp_path):
    file = tmp_path / "results.jsonl"
    assert collect(file, [tmp_path / "nothing"]) == [] and not file.exists()
    later = collect(file, folders(tmp_path, row(2), row(0)))
    assert [each.cell for each in later] == [0, 2] and read_results(file) == later
    again = row(2, figures={"FD(x)": 1.0}, curve={"step": [1, 2], "plain/noise": [0.123456, 1.0]})
    found = collect(file, folders(tmp_path, again, row(1)))
    assert [each.cell for each in found] == [0, 1, 2]
    assert found[2].figures == {"FD(x)": 1.0} and found[2].curve["plain/noise"] == [0.1235, 1.0]
    before = file.stat().st_mtime_ns
    assert collect(file, folders(tmp_path, again)) == found
    assert file.stat().st_mtime_ns == before, "nothing new, nothing written"


def test_a_done_row_of_another_machine_is_not_lost_to_a_failed_one_of_this(tmp_path):
    file = tmp_path / "results.jsonl"
    collect(file, folders(tmp_path, row(0, figures={"FD(x)": 1.0}, finished="2026-01-02 00:00")))
    failed = CellResult(0, "v0", 0, "a", "failed", error="x", finished="2026-01-03 00:00")
    assert [each.status for each in collect(file, folders(tmp_path, failed))] == ["done"]
    later = row(0, figures={"FD(x)": 2.0}, finished="2026-01-04 00:00")
    assert collect(file, folders(tmp_path, later))[0].figures == {"FD(x)": 2.0}
    earlier = row(0, figures={"FD(x)": 3.0}, finished="2026-01-01 00:00")
    assert collect(file, folders(tmp_path, earlier))[0].figures == {"FD(x)": 2.0}


def test_another_process_that_collects_is_not_waited_for(tmp_path, root):
    file = tmp_path / "results.jsonl"
    collect(file, folders(tmp_path, row(0)))
    code = f"""
from pathlib import Path
from dit_shd.core.lock import Lock
lock = Lock(Path({str(tmp_path)!r}) / ".results.lock", "dit-shd study")
print("held", flush=True)
input()
"""
    words = [sys.executable, "-c", code]
    holder = subprocess.Popen(words, env={"PYTHONPATH": str(root)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    assert [each.cell for each in collect(file, folders(tmp_path, row(1)))] == [0, 1]
    assert [each.cell for each in read_results(file)] == [0], "given, and written by the next call"
    holder.communicate(b"\n", timeout=30)
    assert [each.cell for each in collect(file, folders(tmp_path, row(1)))] == [0, 1]


WHOLE = '{"cell": 0, "variant": "v", "seed": 0, "sha256": "a", "status": "done", %s}'


@pytest.mark.parametrize(
    "line",
    [
        *("{", "[]", '{"cell": 0}', '{"cel": 1}', "3", "\udcff"),
        *(WHOLE % field for field in ('"curve": []', '"curve": null', '"figures": null', '"figures": {"FD": "x"}')),
    ],
)
def test_a_file_of_something_else(line, tmp_path):
    file = tmp_path / "results.jsonl"
    file.write_bytes((line + "\n").encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"results.jsonl:1: wanted a row of a study"):
        read_results(file)

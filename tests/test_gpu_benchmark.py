"""benchmarks/gpu.py rehearsed on a CPU, and what it makes of parts that fail."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def gpu(root):
    spec = importlib.util.spec_from_file_location("gpu", root / "benchmarks" / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gpu"]


@pytest.mark.parametrize("parts", [["card", "step 256"], pytest.param([], marks=pytest.mark.slow)])
def test_a_rehearsal_takes_the_whole_path(root, tmp_path, gpu, parts):
    command = [sys.executable, root / "benchmarks" / "gpu.py", "--rehearse", "--minutes", "30", "--out", tmp_path]
    command += ["--parts", *parts] if parts else []
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + (tmp_path / "log.txt").read_text()[-4000:]
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {row["part"] for row in rows} == set(parts or gpu.REHEARSED)
    wanted = {row["wanted"] for row in rows}
    assert ({"<= 1.1"} if parts else {"<= 2", "<= 1.1", ">= 1.3", "<= 1e-05", ">= 1"}) <= wanted
    table = (tmp_path / "table.md").read_text()
    assert all(f"| {row['part']} | {row['what']} |" in table for row in rows)


def environment():
    return dict(os.environ)


@pytest.mark.parametrize(
    ("code", "seconds", "note"),
    [
        ("raise SystemError('out of order')", 60, "ended with 1; its last line: SystemError: out of order"),
        ("import os; os.abort()", 60, "ended with -6"),
        ("import time; time.sleep(60)", 1, "stopped after 1 s"),
    ],
)
def test_a_part_that_fails_is_a_row_and_its_rows_stay(gpu, tmp_path, code, seconds, note):
    first = json.dumps({"what": "first", "value": 3.0, "wanted": "<= 2"})
    program = f"print({gpu.MARK + first!r}, flush=True); {code}"
    table = gpu.Table(tmp_path, "title")
    gpu.run_part("a part", [sys.executable, "-c", program], seconds, table, environment())
    measured, failed = table.rows.values()
    assert (measured.what, measured.met) == ("first", False)
    assert failed.note.startswith(note)
    assert not table.good
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[-2] == "| a part | first | <= 2 | 3 | **no** |  |"
    assert (tmp_path / "rows.jsonl").read_text().count("\n") == 2


def test_what_a_part_started_ends_with_it(gpu, tmp_path):
    """Also what would run on after its time."""
    file = tmp_path / "late"
    inner = f"import time; time.sleep(3); open({str(file)!r}, 'w')"
    outer = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {inner!r}]); time.sleep(60)"
    table = gpu.Table(tmp_path, "title")
    gpu.run_part("a part", [sys.executable, "-c", outer], 1, table, environment())
    subprocess.run([sys.executable, "-c", "import time; time.sleep(3.5)"])
    assert not file.exists()

"""Commands as children: which program, whose environment, what they took, how they ended."""

import signal
import sys
import threading
import time

import pytest

from dit_shd.core import plugins
from dit_shd.study.processes import Commands, Usage


def test_a_launcher_is_for_commands_that_processes_share():
    launcher, plain = "accelerate launch --num_processes 8 -m dit_shd", [sys.executable, "-m", "dit_shd"]
    commands = Commands(launcher)
    assert commands.resolved(["dit-shd", "train", "x"]) == [*launcher.split(), "train", "x"]
    assert commands.resolved(["dit-shd", "sample", "x"]) == [*launcher.split(), "sample", "x"]
    assert commands.resolved(["dit-shd", "evaluate", "x"]) == [*plain, "evaluate", "x"]
    assert Commands().resolved(["dit-shd", "train", "x"]) == [*plain, "train", "x"]
    assert commands.resolved(["python", "train"]) == [sys.executable, "train"]
    assert commands.resolved(["sh", "train"]) == ["sh", "train"]


def test_what_this_process_trusts_its_commands_do(monkeypatch):
    monkeypatch.setattr(plugins, "_trusted", {"mine", "hers"})
    assert Commands("srun dit").resolved(["dit-shd", "train", "x"])[-4:] == ["--trust", "hers", "--trust", "mine"]
    trusting = ["--trust", "hers", "--trust", "mine"]
    assert Commands().resolved(["dit-shd", "evaluate", "x"])[3:] == ["evaluate", "x", *trusting]
    assert Commands().resolved(["python", "read.py"])[1:] == ["read.py"]


def test_what_a_command_took_is_its_own(tmp_path):
    work = "import time\nblock = b'x' * 2**30\nwhile time.process_time() < 0.3: pass"
    busy = Commands().run(["python", "-c", work], tmp_path / "busy.log")
    idle = Commands().run(["python", "-c", "import time; time.sleep(0.3)"], tmp_path / "idle.log")
    assert busy.done and idle.done
    assert busy.usage.cpu_seconds > 0.29 > idle.usage.cpu_seconds
    assert idle.usage.seconds > 0.29
    assert busy.usage.memory_mib > 1000 and idle.usage.memory_mib > 1
    assert Usage(1, 2, 30) + Usage(1, 1, 10) == Usage(2, 3, 30)


def test_the_environment_of_a_child(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    code = "import os, dit_shd; print(os.environ.get('WORLD_SIZE'), os.environ['OMP_NUM_THREADS'])"
    Commands(threads=3).run(["python", "-c", code], tmp_path / "log")
    assert (tmp_path / "log").read_text().splitlines()[1] == "None 3"


@pytest.mark.parametrize(
    ("code", "error", "number"),
    [
        ("raise SystemExit('wanted one, found two')", "python: wanted one, found two (exit code 1)", 0),
        ("import os; os.kill(os.getpid(), 9)", "(ended by signal 9)", 0),
        ("raise SystemExit(143)", "", signal.SIGTERM),
        ("raise SystemExit(130)", "", signal.SIGINT),
        ("import os; os.kill(os.getpid(), 10)", "", signal.SIGUSR1),
    ],
)
def test_a_failure_and_a_signal_are_told_apart(code, error, number, tmp_path):
    outcome = Commands().run(["python", "-c", code], tmp_path / "log")
    assert outcome.error.endswith(error) and bool(outcome.error) == bool(error)
    assert outcome.signal == number and not outcome.done


def test_what_a_launcher_says_behind_an_error_is_not_the_error(tmp_path):
    """torchrun ends its report with a rule, which was the error of every cell that failed."""
    script, log = tmp_path / "launch.py", tmp_path / "log"
    script.write_text(
        "import sys; print(f'dit-shd {sys.argv[1]}: step 3: the loss is {sys.argv[2]}'); print('=' * 60); sys.exit(1)"
    )
    commands = Commands(f"{sys.executable} {script}")
    assert commands.run(["dit-shd", "train", "inf"], log).error.startswith(
        "train: dit-shd train: step 3: the loss is inf"
    )
    assert commands.run(["dit-shd", "train", "nan"], log).error.endswith("the loss is nan (exit code 1)")
    script.write_text("import sys; print('no such option'); sys.exit(2)")
    assert commands.run(["dit-shd", "train", "x"], log).error == "train: no such option (exit code 2)"


def test_stopping_ends_what_runs_and_begins_no_more(tmp_path):
    commands = Commands()
    outcomes = []
    code = "import time; print('begun', flush=True); time.sleep(60)"
    thread = threading.Thread(target=lambda: outcomes.append(commands.run(["python", "-c", code], tmp_path / "log")))
    thread.start()
    while not (tmp_path / "log").exists() or "\nbegun" not in (tmp_path / "log").read_text():
        time.sleep(0.01)
    commands.stop()
    thread.join(timeout=30)
    assert outcomes[0].signal == signal.SIGTERM
    assert commands.run(["python", "-c", "print('never')"], tmp_path / "log").signal
    assert "\nnever" not in (tmp_path / "log").read_text()

"""Signals: the step is finished and saved, the exit code says which it was, and the same command goes on."""

import json
import os
import signal
import subprocess
import sys

import pytest
import yaml
from diffusers import ModelMixin
from runs import contents, torchrun_and_errors

from dit_shd.cli.program import main
from dit_shd.core import signals
from dit_shd.core.config import make
from dit_shd.core.signals import StopRequest
from dit_shd.training.config import TrainConfig
from dit_shd.training.trainer import Trainer


@pytest.fixture(autouse=True)
def _not_under_nohup():
    """Whoever runs the tests may have had them outlive a terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def config(values, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({**values, "steps": 6, "checkpoint_every": 100}))
    return file


def send(monkeypatch, *at):
    """Signals to this process while it works at steps (counted from 1), in order."""
    real, calls = Trainer.accumulate, []

    def accumulate(self, batches):
        calls.append(1)
        for step, number in at:
            if step == len(calls):
                os.kill(os.getpid(), number)
        return real(self, batches)

    monkeypatch.setattr(Trainer, "accumulate", accumulate)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"])
def test_a_signal_finishes_the_step_saves_and_the_same_command_goes_on(config, tmp_path, monkeypatch, capfd, name):
    number = signal.Signals[name]
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        send(patch, (3, number))
        assert main(["train", str(config)]) == 128 + number
    assert signal.getsignal(number) is before
    said = capfd.readouterr().err
    assert f"{name}: finishing this step, then saving" in said
    assert said.splitlines()[-1] == "dit-shd train: stopped at step 3 of 6, saved; the same command goes on from there"
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000003"]
    assert not (tmp_path / "run" / ".lock").exists()
    assert main(["train", str(config)]) == 0
    assert main(["train", str(config), f"run={tmp_path / 'straight'}"]) == 0
    ours, theirs = contents(tmp_path / "run"), contents(tmp_path / "straight")
    assert {k: v for k, v in ours.items() if "step_00000003" not in k} == theirs


def test_a_signal_in_the_last_step_is_no_interruption(config, monkeypatch):
    send(monkeypatch, (6, signal.SIGTERM))
    assert main(["train", str(config)]) == 0


def test_a_second_ctrl_c_stops_at_once(config, tmp_path, monkeypatch, capfd):
    """Not the echo of the first one, which a launcher sends on."""
    monkeypatch.setattr(signals, "ECHO_SECONDS", -1.0)
    send(monkeypatch, (2, signal.SIGINT), (2, signal.SIGINT))
    assert main(["train", str(config)]) == 130
    assert "interrupted; the same command goes on from what is saved" in capfd.readouterr().err
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_the_echo_of_a_ctrl_c_is_not_a_second_one(config, tmp_path, monkeypatch):
    send(monkeypatch, (2, signal.SIGINT), (2, signal.SIGINT))
    assert main(["train", str(config)]) == 130
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000002"]


def test_a_script_of_your_own_can_ask(values):
    trainer = Trainer.from_config(make(TrainConfig, {**values, "checkpoint_every": 100}))
    for step in trainer.run_steps():
        if step.number == 1:
            trainer.stop.request()
    assert trainer.folder.load()["step"] == 2
    assert trainer.stop.due


WAITING = """
import sys, time
from dit_shd.__main__ import main
from dit_shd.training.trainer import Trainer
real, calls = Trainer.accumulate, []
def accumulate(self, batches):
    calls.append(1)
    if len(calls) == 3:
        print("at step 3", flush=True)
        while not self.stop.signal:
            time.sleep(0.01)
    return real(self, batches)
Trainer.accumulate = accumulate
sys.exit(main(["train", sys.argv[1]]))
"""


@pytest.mark.skipif(not hasattr(os, "login_tty"), reason="wants a terminal of its own")
def test_the_end_of_a_terminal_finishes_the_step_and_saves(config, tmp_path, root):
    """Nothing can be printed there any more: bars and lines of progress would end the step with an error."""
    ours, theirs = os.openpty()
    command = [sys.executable, "-c", WAITING, str(config)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    process = subprocess.Popen(command, env=environment, preexec_fn=lambda: os.login_tty(theirs))
    os.close(theirs)
    try:
        said = b""
        while b"at step 3" not in said:
            said += os.read(ours, 4096)
        os.close(ours)
        assert process.wait(60) == 129
    finally:
        process.kill()
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000003"]
    assert not (tmp_path / "run" / ".lock").exists()


def test_under_nohup_the_end_of_a_terminal_ends_nothing(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.terminable(), StopRequest().listening() as asked:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not asked.signal
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGHUP"])
def test_a_signal_ends_other_commands_with_a_line(monkeypatch, capfd, name):
    """A demo's children had gone on without it."""
    from dit_shd.cli import digits_demo

    number = signal.Signals[name]
    monkeypatch.setattr(digits_demo, "demo", lambda config: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    assert main(["demo"]) == 128 + number
    assert f"dit-shd demo: ended by {name}; the same command goes on" in capfd.readouterr().err
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_saves_nothing_promises_nothing(monkeypatch, capsys, number):
    from dit_shd.cli.commands import statistics

    monkeypatch.setattr(statistics, "write_reference_statistics", lambda config: os.kill(os.getpid(), number))
    assert main(["statistics", "digits", "out=known.npz"]) == 128 + number
    err = capsys.readouterr().err
    assert "what it had not written is lost" in err and "goes on" not in err


def test_outside_of_the_main_thread_signals_are_left_alone():
    import threading

    failed = []

    def work():
        try:
            with signals.terminable():
                pass
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed


def test_nothing_is_due_until_somebody_asks():
    asked = StopRequest()
    assert not asked.agreed()
    asked.request(signal.SIGUSR1)
    asked.request(signal.SIGTERM)
    assert asked.agreed()
    assert asked.signal == signal.SIGUSR1


def test_two_processes_stop_after_the_same_step_though_one_alone_is_told(values, tmp_path, root):
    """By torchrun; the second process gets the signal. One process goes on."""
    file, script = tmp_path / "config.yaml", tmp_path / "go.py"
    file.write_text(yaml.safe_dump({**values, "steps": 6, "checkpoint_every": 100}))
    script.write_text(
        "import os, signal, sys\n"
        "from dit_shd.cli import main\n"
        "from dit_shd.training.trainer import Trainer\n"
        "real, calls = Trainer.accumulate, []\n"
        "def accumulate(self, batches):\n"
        "    calls.append(self.accelerator.num_processes)\n"
        "    if len(calls) == 3 and os.environ['RANK'] == '1':\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return real(self, batches)\n"
        "Trainer.accumulate = accumulate\n"
        "code = main(['train', sys.argv[1]])\n"
        "print(f'rank {os.environ[\"RANK\"]} of {calls[0]}: {len(calls)} steps, exit code {code}', flush=True)\n"
        "os._exit(0)\n"
    )

    said, errors = torchrun_and_errors(script, 2, root, file)
    ranks = sorted(line for line in said.splitlines() if line.startswith("rank"))
    assert ranks == ["rank 0 of 2: 3 steps, exit code 143", "rank 1 of 2: 3 steps, exit code 143"], errors[-2000:]
    assert "stopped at step 3 of 6" in errors
    assert main(["train", str(file)]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]


INTERRUPTED = """
import os, runpy, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == MODULE:
            os.kill(os.getpid(), signal.NUMBER)

sys.modules.pop("argparse", None)
sys.meta_path.insert(0, Interrupt())
sys.argv = [SCRIPT, *WORDS]
if SCRIPT == "-m":
    runpy.run_module("dit_shd", run_name="__main__")
else:
    runpy.run_path(SCRIPT, run_name="__main__")
"""


@pytest.mark.parametrize(
    ("script", "words", "number", "module"),
    [
        ("-m", ["train", "configs/digits_shd.yaml"], "SIGINT", "argparse"),
        ("-m", ["train", "configs/digits_shd.yaml"], "SIGINT", "torch"),
        ("-m", ["train", "configs/digits_shd.yaml"], "SIGTERM", "torch"),
        ("-m", ["evaluate", "--help"], "SIGINT", "yaml"),  # it does without torch
        ("-m", ["evaluate", "README.md", "reference=x"], "SIGINT", "torch"),
        ("train_dit.py", ["configs/digits_shd.yaml"], "SIGINT", "argparse"),
        ("train_dit.py", ["configs/digits_shd.yaml"], "SIGINT", "torch"),
        ("sampling/sample_dit.py", ["dit_shd/assets/digits_teacher"], "SIGINT", "torch"),
        ("eval/evaluate_dit.py", ["README.md", "reference=x"], "SIGINT", "torch"),
    ],
)
def test_a_signal_while_modules_are_imported_ends_a_command_in_a_line(root, tmp_path, script, words, number, module):
    """An exception in an import is somebody else's to catch, or ends the process from C++."""
    words = [str(root / word) if "." in word or "/" in word else word for word in words]
    code = INTERRUPTED.replace("MODULE", repr(module)).replace("NUMBER", number).replace("WORDS", repr(words))
    script = script if script == "-m" else str(root / script)
    command = [sys.executable, "-c", code.replace("SCRIPT", repr(script))]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr.strip()) == (128 + signal.Signals[number], "", "interrupted")
    assert not list(tmp_path.iterdir())


def test_a_stop_is_no_error_of_what_it_comes_in(monkeypatch):
    """Libraries' errors are caught as any Exception; a signal among them would be told as a fault of sizes or files."""
    from dit_shd.models.families import diffusers

    class Slow(ModelMixin):
        def __init__(self):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(diffusers, "_class", lambda *_: Slow)
    with pytest.raises(signals.Stopped, match="ended by SIGTERM"), signals.terminable():
        diffusers.Diffusers.from_options(transformer="Slow")

"""Lives of a command that end by kill -9: `python tests/killing.py LIVES.json` forks each from one warm process.

LIVES.json is a list of {"argv": [...], "kill": {...} or null}, perhaps with "copy": [from, to] (folders, before it) and
"events": file (for the list of its durable acts); the exit codes of the lives are printed as JSON (-9 for
one that was killed). Started by torchrun it is one life itself: LIVES.json is then that life, and the process dies
where its rank is named.

A kill is {"event": n}: just before or after the n-th durable act (rename, sync, removal of a file or folder), or
{"phase": name, "call": n, "delay": seconds}: so long after the n-th beginning of a step, a save, ...
What is drawn from the data goes to the file ORDER of the environment: step, place and a hash of all that is drawn.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import torch

ACTS = ((os, "replace"), (os, "fsync"), (os, "unlink"), (os, "rmdir"))


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def wrapped(owner, name, around):
    real = getattr(owner, name)
    setattr(owner, name, lambda *args, **options: around(lambda: real(*args, **options), args))


def arm(kill):
    """Make this process die there; `None`: count the durable acts, and say how many there were at the end."""
    events, lock = [], threading.Lock()

    def event(what):
        with lock:
            events.append(what)
        if kill and kill.get("event") == len(events):
            die()

    for owner, name in ACTS:

        def around(real, args, name=name):
            event(f"before {name} {args[0]}")
            result = real()
            event(f"after {name} {args[0]}")
            return result

        wrapped(owner, name, around)
    if kill and "phase" in kill:
        phase(kill)
    return events


def owners():
    """Phase -> whose function it is, and its name there."""
    from dit_shd.diffusion import generation, sample_evaluation
    from dit_shd.models import export
    from dit_shd.training.checkpointer import Checkpointer
    from dit_shd.training.run_folder import RunFolder
    from dit_shd.training.trainer import Trainer
    from dit_shd.training.validation import Validation

    return {
        "step": (Trainer, "accumulate"),
        "save": (RunFolder, "save"),
        "export": (export, "export"),
        "resume": (Checkpointer, "resume"),
        "validation": (Validation, "run"),
        "evaluation": (sample_evaluation, "evaluate"),
        "sample": (generation, "draw"),
        "publish": (generation, "_publish"),
    }


def phase(kill):
    calls = []

    def around(real, args):
        calls.append(args)
        if len(calls) == kill["call"]:
            if not kill["delay"]:
                die()
            threading.Timer(kill["delay"], die).start()
        return real()

    wrapped(*owners()[kill["phase"]], around)


def line_of(step, positions, passes):
    """What was drawn at a place."""
    sums = hashlib.sha256()
    for batch in passes:
        for value in vars(batch).values():
            if isinstance(value, torch.Tensor):
                sums.update(value.contiguous().numpy().tobytes())
    return f"{step} {min(positions)} {len(positions)} {sums.hexdigest()}\n"


def record_order(file):
    """Append a line for everything that is drawn of the data, by whichever task."""
    from dit_shd.tasks import TASKS

    for task in map(TASKS.find, TASKS.names()):
        task.draw = recorded(task.draw, file)


def recorded(real, file):
    """A task's `draw` that also writes what it drew."""

    def draw(self, draws):
        passes = real(self, draws)
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, line_of(draws.step, draws.positions, passes).encode())
        os.close(descriptor)
        return passes

    return draw


def live(life):
    """One life: the command's exit code, if it comes to that."""
    from dit_shd.cli.program import main

    if "ORDER" in os.environ:
        record_order(os.environ["ORDER"])
    mine = life.get("rank") in (None, int(os.environ.get("RANK", "0")))
    events = arm(life["kill"] if mine else None)
    sys.argv = ["dit-shd", *life["argv"]]  # results tell the command
    code = main(life["argv"])
    if "events" in life:
        Path(life["events"]).write_text(json.dumps(events))
    return code


def fork_all(lives):
    import accelerate
    import diffusers

    assert accelerate and diffusers
    torch.set_num_threads(1)
    codes = []
    for life in lives:
        if "copy" in life:
            shutil.copytree(*life["copy"])
        child = os.fork()
        if not child:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
            os._exit(live(life))
        end = time.monotonic() + 240
        while not (done := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < end:
            time.sleep(0.002)
        if not done[0]:
            os.kill(child, signal.SIGKILL)
            sys.exit(f"{life}: does not end")
        codes.append(os.waitstatus_to_exitcode(done[1]))
    return codes


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    if "TORCHELASTIC_RUN_ID" in os.environ:
        sys.exit(live(given))
    print(json.dumps(fork_all(given)))

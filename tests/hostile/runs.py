"""Run folders of strangers: checkpoints, calibration, locks, kept batches; and what may be named in a config."""

import functools
import json
import os
import random
import socket
import struct
import sys
import zlib
from pathlib import Path

import torch

from dit_shd.core.hashing import sha256
from dit_shd.core.lock import Lock
from dit_shd.core.plugins import Plugin
from dit_shd.core.rng import Draws
from dit_shd.data.datasets import DATASETS
from dit_shd.data.open_images import open_images
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses.shd import SHD
from dit_shd.evaluation.features import FEATURES
from dit_shd.models.families import FAMILIES
from dit_shd.models.families.mdt import MDTv2
from dit_shd.tasks import TASKS
from dit_shd.tasks.diffusion import Diffusion, NoisyBatch
from dit_shd.training import bad_step, calibration_file
from dit_shd.training.bad_step import read_batches
from dit_shd.training.checkpoint import MANIFEST
from dit_shd.training.diagnosis import Diagnosis
from dit_shd.training.run_folder import RunFolder

from . import PWNED, Class
from .configs import settled, whole
from .damage import WEIRD, bend_file, bent_bytes, bent_values, exploit
from .files import small


def checkpoint(draw: random.Random, folder: Path) -> object:
    """Two checkpoints, the newest (or both) damaged, by accident or with a manifest that fits; nothing is removed."""
    run = RunFolder(folder / "run")
    state = {f"w{i}": torch.ones(4) for i in range(3)}
    optimizer = {"state": {0: {"step": torch.ones(())}}, "param_groups": [{"lr": 1.0, "params": [0]}]}
    for step in (1, 2):
        run.save(step, {"distiller": state}, optimizer, {"skipped_steps": 0}, keep=9)
    for newest in run.checkpoints()[:: -1 if draw.random() < 0.7 else 1][: draw.choice([1, 1, 2])]:
        file = draw.choice(sorted(newest.iterdir()))
        how = draw.randrange(5)
        if how == 0:
            file.unlink()
        elif how == 1:
            file.write_bytes(exploit(draw.choice([0, 2, 4])))
        elif how == 2:
            (newest / "optimizer.pt").write_bytes(exploit())
        elif how == 3 and file.suffix == ".json":
            file.write_text(json.dumps(bent_values(draw, json.loads(file.read_text()))))
        else:
            bend_file(draw, file)
        if draw.random() < 0.5 and how:
            sums = {f.name: sha256(f) for f in newest.iterdir() if f.name != MANIFEST}
            (newest / MANIFEST).write_text(json.dumps(sums))
    try:
        return run.load()
    finally:
        assert len(list((folder / "run" / "checkpoints").iterdir())) == 2, "a checkpoint was removed"


@functools.cache
def models() -> tuple[MDTv2, MDTv2]:
    torch.manual_seed(0)
    config = {k: v for k, v in dict(small().config).items() if not k.startswith("_")}
    return small(), MDTv2(**{**config, "num_attention_heads": 4, "attention_head_dim": 4})


def calibration(draw: random.Random, folder: Path) -> object:
    """calibration.json: plans that are none, of other layers, with heads twice; taken up and used for a loss."""
    student, teacher = models()
    loss = SHD(plan="matched")
    distiller = Distiller(task(), student, [loss])
    good = {"shd": {"plans": {f"{s}.attn": [[0, 1], [2, 3]] for s in _blocks(student)}}}
    file = folder / calibration_file.FILE
    file.write_text(json.dumps(bent_values(draw, bent_values(draw, good))))
    if draw.random() < 0.3:
        file.write_bytes(bent_bytes(draw, json.dumps(good).encode()))
    calibration_file.restore(folder, dict(distiller.named_losses()), report=True)
    with torch.no_grad():
        return distiller(batches(1)[0], teacher)


def _blocks(model: MDTv2) -> list[str]:
    return [name.removesuffix(".attn") for name, _ in model.named_modules() if name.endswith(".attn")]


@functools.cache
def task() -> Diffusion:
    import tempfile

    import numpy as np

    file = Path(tempfile.mkdtemp()) / "data.npz"
    np.savez(file, np.zeros((6, 8, 8, 1), np.uint8), np.arange(6) % 3)
    data = DATASETS.build(Plugin("npz", {"path": str(file)}))
    diffusion = Diffusion()
    diffusion.use(data, models()[0])
    return diffusion


def batches(count: int) -> list[NoisyBatch]:
    """The passes of a step's first images."""
    return list(task().draw(Draws(0, 0, range(count), 2)))


def lock(draw: random.Random, folder: Path) -> object:
    """What another command left in .lock: of this host, of another, of nobody."""
    told = {"what": "dit-shd train", "pid": 1, "host": socket.gethostname(), "start": 1, "since": 1.7e9}
    if draw.random() < 0.5:
        told["host"] = "elsewhere"
    if draw.random() < 0.7:
        told[draw.choice(sorted(told))] = draw.choice([*WEIRD, -(10**30), -1, 1e18])
    data = json.dumps(told).encode()
    (folder / ".lock").write_bytes(bent_bytes(draw, data) if draw.random() < 0.3 else data)
    if draw.random() < 0.2:
        (folder / ".lock").unlink()
        (folder / ".lock").symlink_to(folder.parent / "escaped")
    with Lock(folder / ".lock", "x"):
        return os.listdir(folder)


def kept_batch(draw: random.Random, folder: Path) -> object:
    """A batch that a run kept, damaged."""
    file = folder / "bad_steps" / "step_00000001.safetensors"
    bad_step.write(file, batches(2), Diagnosis(("plain/noise",), "x"))
    bend_file(draw, file)
    return read_batches(file, NoisyBatch)


def named(draw: random.Random, folder: Path) -> object:
    """A config that names Python objects wherever a name can stand, beside a file that would run."""
    (folder / "evil.py").write_text(f"open({PWNED!r}, 'w')\nclass Evil: pass\n")
    values = dict(whole()[draw.randrange(len(whole()))])
    name = draw.choice(
        ["evil.Evil", "os.system", "builtins.eval", "evil", "dit_shd.core.config.make", "subprocess.Popen"]
    )
    place = draw.choice(["data", "student", "losses", "features", "tracker", "optimizer", "teacher", "task"])
    if place == "losses":
        values["losses"] = [{"name": name, "weight": 1}]
    elif place == "features":
        values["evaluation"] = {"every": 1, "reference": "digits", "features": name}
    elif place == "optimizer":
        values["optimizer"] = {"name": name}
    else:
        values[place] = name if place in ("tracker", "teacher") else {"name": name}
    sys.path.insert(0, str(folder))
    try:
        config = settled(values)
        if place == "features":
            options = TASKS.filled(config.task, "task").options
            return FEATURES.build(options["evaluation"].features, "evaluation.features")
        if place == "teacher":
            from dit_shd.models import loading

            return loading.load(name)
        return FAMILIES.build(config.student, "student")
    finally:
        sys.path.remove(str(folder))
        assert "evil" not in sys.modules


def image_bomb(draw: random.Random, folder: Path) -> object:
    """A png of a few kB that claims to be huge, or whose text unfolds."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    sides = draw.choice([(65500, 65500), (2**31 - 1, 1), (1, 2**31 - 1), (20000, 20000), (9000, 9000), (8, 8)])
    depth, colour = draw.choice([(8, 2), (16, 6), (8, 0), (1, 0)])
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *sides, depth, colour, 0, 0, draw.choice([0, 1])))
    text = chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(80_000_000))) if draw.random() < 0.3 else b""
    pixels = chunk(b"IDAT", zlib.compress(bytes(draw.choice([64, 10**6, 2 * 10**7]))))
    (folder / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + text + pixels + chunk(b"IEND", b""))
    return [batch.shape for batch in open_images(str(folder), "samples").batches(2)]


CLASSES = [
    Class("run checkpoints", "files missing, damaged, pickled, with a manifest that fits; resuming", 80, checkpoint),
    Class("calibration", "plans that are none, heads twice, other layers; a run that goes on", 40, calibration),
    Class("locks", "pids, hosts and times of nobody, a link that leads away; the second command", 40, lock),
    Class("kept batches", "damaged bytes and headers; replaying", 20, kept_batch),
    Class(
        "names in configs", "Python objects as task, data, model, loss, features, tracker, teacher; training", 40, named
    ),
    Class("image bombs", "kB that claim 4,000 megapixels, text that unfolds to 80 MB; samples", 30, image_bomb),
]

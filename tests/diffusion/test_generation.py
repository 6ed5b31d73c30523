"""Sampling into files: shards, resuming after anything, processes, the merged npz."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from two_process_jobs import said

from dit_shd.core.config import make
from dit_shd.core.distributed import launched
from dit_shd.core.errors import UserError
from dit_shd.data.image_shards import open_shards
from dit_shd.diffusion import generation, sampler
from dit_shd.diffusion.generation import sample_to_file
from dit_shd.diffusion.sample_config import SampleConfig
from dit_shd.diffusion.sampler import sample
from dit_shd.models.loading import load
from sampling import QUICK, arrays, config

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(teacher):
    return load(teacher).eval()


@pytest.fixture(scope="module")
def straight(teacher, one_thread, tmp_path_factory):
    """Ten images sampled without any trouble."""
    return sample_to_file(config(teacher, tmp_path_factory.mktemp("straight")))


def begin(values, shards, monkeypatch):
    """Sample as far as some finished shards, then be interrupted."""
    real, drawn = sampler.draw, []

    def dies(*arguments):
        if len(drawn) == shards:
            raise KeyboardInterrupt
        drawn.append(arguments[2])
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(generation, "draw", dies)
        with pytest.raises(KeyboardInterrupt):
            sample_to_file(values)


def test_files(teacher, model, tmp_path, capsys):
    out = sample_to_file(config(teacher, tmp_path))
    images, labels = arrays(out)
    assert images.shape == (10, 8, 8, 1)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, sample(model, 10, **QUICK)[0])
    assert labels.shape == (10,)
    told = json.loads(out.with_suffix(".json").read_text())
    assert told["rounding"] == "floor"
    assert told["labels"] == "random"
    assert told["steps"] == 6
    assert "10/10 images" in (bar := capsys.readouterr().err)
    assert "images/s" in bar and "left" in bar
    assert Image.open(out.with_suffix(".png")).size[0] > 80
    assert not list(tmp_path.glob("*.parts"))
    with pytest.raises(UserError, match="is there already"):
        sample_to_file(config(teacher, tmp_path))


def test_chosen_classes_are_sampled_in_turn_one_image_each(teacher, straight, tmp_path):
    for labels, count, expected in ("2,0,1", None, [2, 0, 1]), ([1], 3, [1, 1, 1]), (2, None, [2]):
        out = tmp_path / f"{len(expected)}_{expected[0]}.npz"
        asked = make(SampleConfig, dict(run=str(teacher), labels=labels, out=str(out), **QUICK))
        images, given = arrays(
            sample_to_file(asked if count is None else config(teacher, tmp_path, labels=labels, count=3))
        )
        assert given.tolist() == expected and len(images) == len(expected)
        (tmp_path / "s.npz").unlink(missing_ok=True)
        for suffix in (".json", ".png"):
            (tmp_path / f"s{suffix}").unlink(missing_ok=True)
    with pytest.raises(UserError, match="wanted classes 0 to 2, found 0 to 7"):
        sample_to_file(config(teacher, tmp_path, labels="0,7"))


def test_a_folder_of_png_holds_the_images_of_the_npz(teacher, straight, tmp_path, monkeypatch, capsys):
    images, labels = arrays(straight)
    folder = tmp_path / "pictures"
    wanted = config(teacher, tmp_path, out=f"{folder}/")
    begin(wanted, 2, monkeypatch)  # what is there is gone on with
    folder.mkdir(exist_ok=True)  # empty: as good as none
    assert sample_to_file(wanted) == folder
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == [f"{i:05d}_{label}.png" for i, label in enumerate(labels)]
    for file, image in zip(files, images):
        np.testing.assert_array_equal(np.asarray(Image.open(file)), image[..., 0])
    assert json.loads((tmp_path / "pictures.json").read_text())["labels"] == "random"
    assert {f.name for f in tmp_path.iterdir()} == {"pictures", "pictures.json", "pictures.png"}
    with pytest.raises(UserError, match="is there already"):
        sample_to_file(wanted)
    with pytest.raises(UserError, match=r"pictures\.json: is of \S+pictures, and would be of \S+pictures\.npz, too"):
        sample_to_file(config(teacher, tmp_path, out=f"{folder}.npz", force=True))  # whose settings would be lost
    with pytest.raises(UserError, match=r"vae=null keeps latents; wanted FILE.npz"):
        sample_to_file(config(teacher, tmp_path, out="x/", vae=None))


def test_interrupted_sampling_goes_on(teacher, straight, tmp_path, monkeypatch):
    begin(config(teacher, tmp_path), 1, monkeypatch)
    with pytest.raises(UserError, match=r"shards of other settings \(seed: \d+ there, 3 here\)"):
        sample_to_file(config(teacher, tmp_path, seed=3))
    drawn, real = [], sampler.draw
    monkeypatch.setattr(generation, "draw", lambda *arguments: drawn.append(arguments[2]) or real(*arguments))
    out = sample_to_file(config(f"{teacher}/", tmp_path))  # by another path
    assert [r.start for r in drawn] == [4, 8]
    assert out.read_bytes() == straight.read_bytes()


def test_finished_shards_can_be_read_while_the_sampling_goes_on(teacher, model, tmp_path, monkeypatch):
    begin(config(teacher, tmp_path), 2, monkeypatch)
    shards = open_shards(tmp_path / "s.npz.parts")
    assert shards.shape == (8, 8, 8, 1)
    assert shards.settings["rounding"] == "floor"
    whole, plan = sample(model, 10, **QUICK)
    read = list(shards)
    np.testing.assert_array_equal(np.concatenate([images for images, _ in read]), whole[:8])
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in read]), plan[:8])


@pytest.mark.parametrize("damage", ["half", "empty", "flipped", "short"])
def test_a_damaged_shard_is_told_and_drawn_again(teacher, straight, tmp_path, monkeypatch, caplog, damage):
    begin(config(teacher, tmp_path), 2, monkeypatch)
    shard = tmp_path / "s.npz.parts" / "000000004.npz"
    data = bytearray(shard.read_bytes())
    if damage == "flipped":
        data[data.index(b"NUMPY") + 200] ^= 1  # a pixel
    elif damage == "short":
        np.savez(shard, arr_0=np.zeros((3, 8, 8, 1), np.uint8), arr_1=np.zeros(3, np.int64))
        data = shard.read_bytes()
    shard.write_bytes({"half": data[: len(data) // 2], "empty": b""}.get(damage, data))
    out = sample_to_file(config(teacher, tmp_path))
    assert [r.getMessage() for r in caplog.records if "000000004.npz" in r.getMessage()]
    assert out.read_bytes() == straight.read_bytes()


@pytest.mark.parametrize("when", ["merge", "atomic_file", "_publish", "replace", "replaces"])
def test_a_kill_while_merging_loses_nothing(teacher, straight, tmp_path, monkeypatch, when):
    """Die at the entrance of each act of the end; the same command finishes without drawing anything."""
    with monkeypatch.context() as patch:

        def dies(*_):
            raise KeyboardInterrupt

        if when.startswith("replace") and when != "atomic_file":
            moved, real = [], os.replace

            def some(source, target):
                if os.path.basename(source).startswith("merged"):
                    moved.append(target)
                    if len(moved) > (1 if when == "replace" else 2):
                        raise KeyboardInterrupt
                real(source, target)

            patch.setattr(os, "replace", some)
        else:
            patch.setattr(generation, when, dies)
        with pytest.raises(KeyboardInterrupt):
            sample_to_file(config(teacher, tmp_path))
    monkeypatch.setattr(generation, "draw", lambda *_: pytest.fail("drawn again"))
    out = sample_to_file(config(teacher, tmp_path))
    assert out.read_bytes() == straight.read_bytes()
    assert sorted(f.name for f in tmp_path.iterdir() if f.name.startswith("s.")) == ["s.json", "s.npz", "s.png"]


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
import accelerate, diffusers, tqdm
from dit_shd.cli.program import main
from dit_shd.data.image_shards import shard_files
from dit_shd.diffusion import generation  # imported before it forks
from dit_shd.diffusion.sample_files import parts_of
random.seed(0)
out, arguments = Path(sys.argv[1]), sys.argv[2:]
parts, kills = parts_of(out), 0
while True:
    wanted = len(shard_files(parts)) + random.randint(0, 3)
    child = os.fork()
    if not child:
        os._exit(main(["sample", *arguments]))
    while len(shard_files(parts)) < wanted and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.03))
    os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code != -signal.SIGKILL:
        sys.exit(f"{kills} kills, exit code {code}")
    kills += 1
    if out.exists() and not (parts / "merged").exists():
        sys.exit(f"{kills} kills, exit code 0")
"""
"""Kills when 0 to 3 more shards are there, and some milliseconds: in the midst of work however fast that is.

Who is killed once everything is in its place, only not yet gone, has ended: the next would be told that it is there.
"""


@pytest.mark.slow  # `make test-kill` runs it, too
def test_killed_again_and_again_it_ends_as_if_never(teacher, tmp_path, root):
    straight = sample_to_file(config(teacher, tmp_path, count=40, batch_size=2, out=str(tmp_path / "straight.npz")))
    keys = ["count=40", "steps=6", "batch_size=2", "guided_channels=null", f"out={tmp_path / 's.npz'}"]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(tmp_path / "s.npz"), str(teacher), *keys]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    kills = int(done.stderr.splitlines()[-1].split(" kills, exit code 0")[0])
    assert kills >= 3
    assert (tmp_path / "s.npz").read_bytes() == straight.read_bytes()
    assert not list(tmp_path.glob("s.npz.parts/*.npz"))


LIMITED = """
import resource, sys
import accelerate, diffusers, dit_shd.models  # torch 2.6 writes files of its own when it is imported
from dit_shd.cli.program import main
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
sys.exit(main(["sample", *sys.argv[1:]]))
"""


def test_a_full_disk_is_one_line_and_finished_work_is_kept(teacher, tmp_path, root, monkeypatch):
    """A real limit of the kernel: shards fit under it, the merged npz does not."""
    keys = ["count=40", "steps=6", "batch_size=4", "guided_channels=null", f"out={tmp_path / 's.npz'}"]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LIMITED, str(teacher), *keys]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "merged.npz: cannot be written: File too large; what is finished is kept" in done.stderr.splitlines()[-1]
    assert open_shards(tmp_path / "s.npz.parts").shape == (40, 8, 8, 1)
    assert not list((tmp_path / "s.npz.parts").glob(".*.dit_shd.part"))
    monkeypatch.setattr(generation, "draw", lambda *_: pytest.fail("drawn again"))
    out = sample_to_file(config(teacher, tmp_path, count=40))
    assert arrays(out)[0].shape == (40, 8, 8, 1)


def test_other_batch_sizes_give_the_same_images(teacher, straight, tmp_path):
    one, other = arrays(straight), arrays(sample_to_file(config(teacher, tmp_path, batch_size=3)))
    assert np.abs(one[0].astype(int) - other[0]).max() <= 1
    np.testing.assert_array_equal(one[1], other[1])


def test_processes_that_are_none_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    launched(2)
    with pytest.raises(UserError, match="the launcher started 2 processes, but accelerate works with 1"):
        launched(1)


@pytest.mark.two_processes("sampling")
def test_two_processes_sample_what_one_does(straight, by_two):
    """By the script; the teacher of the job is this one."""
    (first, said_first, _), (second, said_second, _) = said(by_two)
    assert not first and not second
    assert (said_first + said_second).count("done: ") == 1, "one of two processes reports: there was one world of two"
    assert straight.read_bytes() == (by_two / "two.npz").read_bytes()


@pytest.mark.two_processes("sampling")
def test_processes_that_have_read_other_weights_draw_nothing(by_two):
    """A run that writes its student between their reads: one file had the images of both, under the hash of one."""
    for *_, refused in said(by_two):
        assert refused.endswith("teacher: was written anew while the processes read it; the same command again")
    assert not list(by_two.glob("mixed*"))


def test_interrupted_sampling_of_velocity_goes_on(flow_teacher, tmp_path, monkeypatch):
    """The same bytes; the settings have what makes the images, and no schedule of DDPM."""
    values = [config(flow_teacher, tmp_path / name, solver="heun", shift=2.0) for name in ("whole", "broken")]
    whole = sample_to_file(values[0])
    begin(values[1], 1, monkeypatch)
    with pytest.raises(UserError, match=r"shards of other settings \(shift: 2\.0 there, None here\)"):
        sample_to_file(config(flow_teacher, tmp_path / "broken", solver="heun"))
    assert sample_to_file(values[1]).read_bytes() == whole.read_bytes()
    told = json.loads(whole.with_suffix(".json").read_text())
    assert (told["solver"], told["shift"]) == ("heun", 2.0) and "diffusion_steps" not in told

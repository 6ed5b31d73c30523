"""Names of places: here and with `~`; and what is said where nothing is."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from small_families import build, same

from dit_shd.cli.program import main
from dit_shd.core.config import cast, checked, make
from dit_shd.core.errors import UserError
from dit_shd.core.places import Asset, HubName, Place, expanded, find, is_here
from dit_shd.core.yaml_files import read_yaml
from dit_shd.data.autoencoder import read_autoencoder
from dit_shd.data.datasets.latents import Latents
from dit_shd.data.datasets.npz import Npz
from dit_shd.data.encode_config import EncodeConfig
from dit_shd.data.encoding import encode_to_shards
from dit_shd.data.latent_shards import read_index
from dit_shd.data.open_images import open_images
from dit_shd.data.sources.detect import open_source
from dit_shd.diffusion.sample_config import SampleConfig
from dit_shd.models import loading, provenance
from dit_shd.training.config import TrainConfig


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to be in, with some names to mistake."""
    for name in ("runs/shd_s2", "runs/teacher", ".hidden", "weights"):
        (tmp_path / "here" / name).mkdir(parents=True)
    (tmp_path / "here" / "weights" / "mdt_xl2.pt").touch()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("runs/shd_s3", "did you mean runs/shd_s2\\?"),
        ("runs/nope", "in 'runs': shd_s2, teacher\\)"),
        ("weights/x/y.pt", "there is no 'x' in 'weights', in 'weights': mdt_xl2.pt"),
        ("weights/mdt_xl2.pt/y", "'weights/mdt_xl2.pt' is no folder"),
        ("nope", "here: runs, weights"),
        ("", "wanted a run folder"),
        ("OWNER/NAME", "is named hub:OWNER/NAME"),
        ("facebook/DiT-XL-2-256", "there is no 'facebook' here, .* is named hub:facebook/DiT-XL-2-256"),
        ("hub:one", "wanted hub:OWNER/NAME or hub:OWNER/NAME@REVISION, found 'hub:one'"),
        ("hub:a/b/c", "wanted hub:OWNER/NAME or"),
        ("hub:a/b@", "wanted hub:OWNER/NAME or"),
        ("hub:../b", "wanted hub:OWNER/NAME or"),
        ("x" * 5000, "found nothing at"),
        ("a\0b", "found nothing at"),
    ],
)  # fmt: skip
def test_what_is_not_here_is_said_with_what_is(here, text, told):
    with pytest.raises(UserError, match=told) as error:
        find(text, "model")
    assert "\n" not in str(error.value)
    assert not is_here(text, "model")


def test_what_is_here_and_what_is_named_elsewhere(here, monkeypatch):
    assert find("runs/teacher", "model") == Path("runs/teacher")
    assert find("asset:digits_teacher", "model") == Asset("digits_teacher")
    assert find("asset:captioned_digits", "autoencoder") == Asset("captioned_digits")
    assert find("hub:a/b", "model") == HubName("a/b")
    assert find("hub:a/b@v1/x", "autoencoder") == HubName("a/b", "v1/x")
    assert find("hub:mnist", "images") == HubName("mnist", kind="dataset")
    (here / "hub:a").mkdir()
    assert find("./hub:a", "model") == Path("hub:a")
    assert is_here("asset:digits_teacher", "model") and not is_here("hub:a/b", "model")


LEFT_OUT = {"torch", "diffusers", "huggingface_hub", "datasets", "numpy"}
PROGRAM = f"""
import sys, socket
sys.addaudithook(lambda event, _: event.startswith('socket.') and sys.exit('asked the network'))
from dit_shd.cli.program import main
code = main(sys.argv[1:])
assert not {LEFT_OUT} & sys.modules.keys(), 'imported'
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("sample runs/nope", "RUN"),
        ("inspect OWNER/NAME", "MODEL"),
        ("convert weights/x.pt out", "FILE"),
        ("encode images=nope out=l", "images"),
        ("encode images=runs vae=nope out=l", "vae"),
        ("train c.yaml teacher=runs/nope", "teacher"),
    ],
)  # fmt: skip
def test_it_is_said_before_anything_heavy_is_imported_and_nothing_is_written(here, root, command, what):
    (here / "c.yaml").write_text("run: out\n")
    before = sorted(here.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *command.split()],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"dit-shd {command.split()[0]}: {what}: wanted a")
    assert sorted(here.rglob("*")) == before


def test_python_says_the_same(here):
    for ask in (loading.load, read_autoencoder, open_source):
        with pytest.raises(UserError, match=r"found nothing at 'OWNER/NAME' .* is named hub:OWNER/NAME"):
            ask("OWNER/NAME")
    assert provenance.provenance("OWNER/NAME").license == "unknown"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder, and another folder to be in; nothing called ~ may appear there."""
    (tmp_path / "home").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    yield tmp_path / "home"
    assert not list((tmp_path / "elsewhere").iterdir())


def test_home_folders_from_the_command_line(home, values, root, capsys):
    """Every command, every kind of option; a resumed run finds its own folder again."""
    np.savez(home / "set.npz", np.zeros((30, 28, 28, 1), np.uint8) + np.arange(30, dtype=np.uint8)[:, None, None, None])
    shutil.copytree(values["teacher"], home / "teacher")
    shutil.copy(values["data"]["path"], home / "data.npz")
    told = {**values, "run": "~/run", "teacher": "~/teacher", "data": {"name": "npz", "path": "~/data.npz"}, "steps": 1}
    (home / "c.yaml").write_text(
        yaml.safe_dump({"check_teacher": "no", **told} if hasattr(TrainConfig, "check_teacher") else told)
    )
    for command in (
        "train ~/c.yaml",
        "sample ~/run count=2 steps=2 out=~/s.npz",
        "convert ~/run ~/model",
        "inspect ~/teacher samples=4 out=~/inspected",
        "evaluate ~/set.npz reference=~/set.npz features=digits metrics=[frechet] out=~/a.json",
        "evaluate ~/set.npz reference=~/set.npz features=digits metrics=[frechet] out=~/b.json",
        "statistics ~/set.npz out=~/statistics.npz features=digits",
        "compare ~/a.json ~/b.json out=~/compared.html cost=false",
        "encode images=~/set.npz out=~/latents vae=null size=8",
    ):
        assert main(command.split()) == 0, (command, capsys.readouterr().err)
    made = {"run", "s.npz", "model", "inspected", "a.json", "b.json", "statistics.npz", "compared.html", "latents"}
    assert made <= {path.name for path in home.iterdir()}
    saved = read_yaml("~/run/config.yaml")
    assert (saved["run"], saved["teacher"]) == (str(home / "run"), str(home / "teacher"))
    assert saved["data"]["path"] == str(home / "data.npz")


def test_home_folders_from_python(home, values):
    """Paths and texts, in configs filled by hand and by `make`, in lists, and as plain arguments."""
    for path in ("~/x", Path("~/x")):
        assert cast(Path, path, "x") == home / "x"
        assert cast(Place, path, "x") == str(home / "x")
        assert cast(Place | list[Place], [path], "x") == [str(home / "x")]
        assert expanded(path) == str(home / "x")
    config = checked(TrainConfig(run=Path("~/run"), teacher="~/t"))
    assert (config.run, config.teacher) == (home / "run", str(home / "t"))
    assert make(SampleConfig, {"run": Path("~/run")}).run == str(home / "run")
    shutil.copy(values["data"]["path"], home / "data.npz")
    encode_to_shards(EncodeConfig(images="~/data.npz", out=Path("~/l"), vae=None, size=8))
    assert len(Latents(Path("~/l"))) == len(Npz(Path("~/data.npz"))) == len(open_images("~/data.npz", "x").labels)
    build("mdt").save_pretrained(home / "m")
    assert same(loading.load("~/m").to_public(), build("mdt").to_public())
    assert provenance.provenance("~/m").learned_from


def test_homes_of_nobody_and_names_that_begin_like_one(home):
    for ask in (lambda x: find(x, "model"), lambda x: cast(Path, x, "out"), lambda x: make(SampleConfig, {"out": x})):
        with pytest.raises(UserError, match=r"found '~nobody-here/x', and there is no user nobody-here"):
            ask("~nobody-here/x")
    assert expanded("./~") == "./~" and expanded("a/~b") == "a/~b"


ODD = os.fsdecode(b"caf\xe9")
"""A name in Latin-1, as an archive of another system may have left it."""


@pytest.mark.parametrize(
    "command", ["sample {}", "train {}", "inspect {}", "convert {} out", "evaluate {} reference=x", "compare {} b",
                "statistics {} out=x", "encode images={} out=l", "encode images=x out={}", "sample x out={}"]
)  # fmt: skip
def test_names_that_are_not_utf_8_are_refused_in_a_line(home, capsys, command):
    assert main([word.format(ODD) for word in command.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "wanted text in UTF-8, found 'caf\\udce9'; rename the file" in line


def test_folders_with_names_that_are_not_utf_8_are_read(home, capsys):
    """Of classes and images: encoded, and evaluated with a hash of their own."""
    for name in (ODD, "tea"):
        (home / "set" / name).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(np.full((8, 8), 40 * i, np.uint8)).save(home / "set" / name / f"{name}{i}.png")
    assert main(["encode", "images=~/set", "out=~/l", "vae=null", "size=8"]) == 0
    assert read_index(home / "l").classes == (ODD, "tea")
    first = open_images("~/set", "x").sha256()
    (home / "set" / ODD).rename(home / "set" / "cafe")
    assert open_images("~/set", "x").sha256() != first
    capsys.readouterr()

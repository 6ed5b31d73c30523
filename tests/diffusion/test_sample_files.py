"""Where samples go: whose files lie there already, and requests that leave none."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dit_shd.core.errors import UserError
from dit_shd.diffusion import generation
from dit_shd.diffusion.generation import sample_to_file, words
from dit_shd.diffusion.sample_files import output_path
from dit_shd.models.loading import load
from sampling import arrays, config

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps: wanted 1 or more, found 0"),
        ({"steps": 1001}, "steps: wanted 1 to 1000"),
        ({"count": 0}, "count: wanted 1 or more"),
        ({"run": "nowhere"}, "wanted a run folder"),
        ({"vae": "no/such/vae"}, "vae: wanted .* found nothing at 'no/such/vae'"),
        ({"solver": "verlet"}, r"solver: wanted auto \| ddpm"),
        ({"solver": "heun"}, "solver: heun is for models that predict velocities, and this one predicts noise"),
        ({"call": {"guidance_scale": 9}}, "call: is of text-to-image models, sampled with prompts=FILE"),
        ({"pipeline": "nowhere"}, "pipeline: is of text-to-image models, sampled with prompts=FILE"),
    ],
)
def test_bad_requests_are_one_line_and_leave_nothing(teacher, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        sample_to_file(config(teacher, tmp_path, **changes))
    assert not list(tmp_path.iterdir())


def test_parts_of_another_model_are_refused(teacher, tmp_path, monkeypatch):
    """A run trained on between an interruption and its continuation must not mix two models in one file."""

    shutil.copytree(teacher, tmp_path / "model")
    options = dict(run=str(tmp_path / "model"))
    with monkeypatch.context() as patch:
        patch.setattr(generation, "merge", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            sample_to_file(config(teacher, tmp_path, **options))
    changed = load(teacher)
    with torch.no_grad():
        changed.pos_embed += 1
    changed.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=r"other settings \(model_sha256: "):
        sample_to_file(config(teacher, tmp_path, **options))


def test_files_of_others_are_left_alone(teacher, tmp_path):
    (tmp_path / "s.npz.parts").mkdir()
    (tmp_path / "s.npz.parts" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="was not made by sample"):
        sample_to_file(config(teacher, tmp_path))
    assert (tmp_path / "s.npz.parts" / "mine.txt").exists()
    (tmp_path / "t.png").write_text("a picture")
    with pytest.raises(UserError, match=r"t\.png: is there already"):
        sample_to_file(config(teacher, tmp_path, out=str(tmp_path / "t.npz")))
    (tmp_path / "u.json").write_text('{"mine": 1}')
    kept = {name: (tmp_path / name).read_text() for name in ("t.png", "u.json")}
    for name, vae in (("t", "auto"), ("u", "auto"), ("t", None), ("u", None)):
        with pytest.raises(UserError, match=rf"{name}\.\w+: is there already, and nothing says that dit-shd sample wr"):
            sample_to_file(config(teacher, tmp_path, out=str(tmp_path / f"{name}.npz"), force=True, vae=vae))
    assert {name: (tmp_path / name).read_text() for name in kept} == kept
    for out in (".", "..", "/", "a.jpg", "b/c.PNG"):
        with pytest.raises(UserError, match=r"out: wanted|is there already"):
            sample_to_file(config(teacher, tmp_path, out=out))


def test_a_wrong_guidance_leaves_nothing_that_blocks_the_right_one(teacher, tmp_path):
    for key, value in (("guidance", -1.0), ("guidance_power", -1.0)):
        with pytest.raises(UserError, match=rf"^{key}: wanted 0 or more, found"):
            sample_to_file(config(teacher, tmp_path, **{key: value}))
    assert not list(tmp_path.iterdir())
    (tmp_path / "s.npz.parts").mkdir()
    (tmp_path / "s.npz.parts" / "settings.json").write_text('{"guidance": 7}')  # of a command that drew nothing
    sample_to_file(config(teacher, tmp_path, count=2))
    assert len(arrays(tmp_path / "s.npz")[0]) == 2


def test_latents_in_the_place_of_images_have_no_grid_of_these(teacher, tmp_path):
    sample_to_file(config(teacher, tmp_path, count=2))
    assert (tmp_path / "s.png").exists()
    sample_to_file(config(teacher, tmp_path, count=2, vae=None, force=True))
    assert arrays(tmp_path / "s.npz")[0].dtype == np.float32 and not (tmp_path / "s.png").exists()


def test_a_folder_is_named_as_one(teacher, tmp_path):
    """Without its / nobody knows if images are to go into it or beside it."""
    (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match=r"out: (\S+x) is a folder; wanted \1/NAME\.npz, \1\.npz beside it, or \1/ for"):
        sample_to_file(config(teacher, tmp_path, out=str(tmp_path / "x")))
    assert [file.name for file in tmp_path.iterdir()] == ["x"]
    for out in ("x/", "x/y.npz", "x.npz"):
        assert str(output_path(config(teacher, tmp_path, out=f"{tmp_path}/{out}"))) == f"{tmp_path}/{out}".rstrip("/")


def test_the_next_line_is_of_the_folder_and_not_of_data_of_its_name(teacher, tmp_path):
    line = words(config(teacher, tmp_path, count=20, out="digits/"), Path("digits"))
    assert "next: dit-shd evaluate ./digits reference=" in line
    assert "dit-shd evaluate pictures reference=" in words(config(teacher, tmp_path, count=20), Path("pictures"))

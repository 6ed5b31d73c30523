"""Sampling: guidance, determinism, solvers, files."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from dit_shd.config import make
from dit_shd.errors import UserError
from dit_shd.models import load
from dit_shd.pictures import grid, to_uint8
from dit_shd.sample_files import sample_to_file
from dit_shd.sampler import Guided, SampleConfig, guidance_weight, sample

QUICK = dict(steps=6, batch_size=4, guided_channels=None)


@pytest.fixture(scope="module")
def model(teacher):
    return load(teacher).eval()


def test_power_cosine_ramps_from_one_to_the_scale():
    t = torch.tensor([0, 250, 500, 999])
    w = guidance_weight(SampleConfig(guidance=3.8), t)
    expected = [1 + 2.8 * (1 - np.cos(np.pi * (1 - x / 1000) ** 4)) / 2 for x in t.tolist()]
    np.testing.assert_allclose(w.numpy(), expected, rtol=1e-6)
    assert guidance_weight(SampleConfig(guidance=3.8, guidance_schedule="constant"), t).tolist() == pytest.approx(
        [3.8] * 4
    )


def test_guidance_by_hand():
    """Guided channels extrapolate, the others and the variance are the conditional half's."""

    class Fake(torch.nn.Module):
        config = type("C", (dict,), {"__getattr__": dict.__getitem__})(num_classes=5, in_channels=2)

        def forward(self, x, t, class_labels, return_dict):
            return (torch.cat([x, x], 1) * 0 + class_labels.view(-1, 1, 1, 1).float(),)

    config = SampleConfig(guidance=3.0, guidance_schedule="constant", guided_channels=1)
    out = Guided(Fake(), torch.tensor([1, 2]), config)(torch.zeros(2, 2, 1, 1), torch.tensor([9, 9]))
    assert out[:, :, 0, 0].tolist() == [[5 + 3 * (1 - 5), 1, 1, 1], [5 + 3 * (2 - 5), 2, 2, 2]]
    plain = Guided(Fake(), torch.tensor([1, 2]), SampleConfig(guidance=1.0))(
        torch.zeros(2, 2, 1, 1), torch.tensor([9, 9])
    )
    assert plain[:, 0, 0, 0].tolist() == [1, 2]


@pytest.mark.parametrize("solver", ["ddpm", "ddim", "dpm++"])
def test_an_image_depends_on_the_seed_and_its_number_only(model, solver):
    whole, labels = sample(model, 6, solver=solver, **QUICK)
    first, _ = sample(model, 3, solver=solver, **{**QUICK, "batch_size": 2})
    assert whole.shape == (6, 8, 8, 1)
    assert whole.dtype == np.uint8
    assert np.abs(whole[:3].astype(int) - first).max() <= 1
    other, _ = sample(model, 6, solver=solver, seed=1, **QUICK)
    assert (whole != other).mean() > 0.3
    assert len({image.tobytes() for image in whole}) == 6
    assert set(labels) <= {0, 1, 2}


def test_solvers_agree_where_they_must(model):
    """With many steps DDIM and DPM-Solver++ solve the same differential equation from the same noise."""
    ddim, _ = sample(model, 4, solver="ddim", steps=200, guidance=1.0)
    dpm, _ = sample(model, 4, solver="dpm++", steps=100, guidance=1.0)
    ddpm, _ = sample(model, 4, solver="ddpm", steps=200, guidance=1.0)
    gap = np.abs(ddim.astype(float) - dpm).mean()
    assert gap < 0.2 * np.abs(ddim.astype(float) - ddpm).mean()


def test_labels(model):
    assert sample(model, 5, labels="balanced", **QUICK)[1].tolist() == [0, 1, 2, 0, 1]
    assert sample(model, 2, labels=[2, 2], **QUICK)[1].tolist() == [2, 2]
    with pytest.raises(UserError, match="wanted 3"):
        sample(model, 3, labels=[1], **QUICK)
    draws = sample(model, 300, steps=1, batch_size=300)[1]
    assert np.bincount(draws, minlength=3).min() > 70


def test_rounding():
    levels = torch.tensor([-1.5, -1.0, -1 + 1.6 / 127.5, 1.0, 3.0]).view(1, 1, 1, 5)
    assert to_uint8(levels, "floor").ravel().tolist() == [0, 0, 1, 255, 255]
    assert to_uint8(levels, "nearest").ravel().tolist() == [0, 0, 2, 255, 255]


def test_grid_places_images_row_by_row():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 4, 1), dtype=np.uint8)
    sheet = np.asarray(grid(images, columns=3, gap=1))
    assert sheet.shape == (2 * 4 + 1, 3 * 5 + 1)
    assert sheet[1, 1] == 0
    assert sheet[5, 6] == 4
    assert sheet[5, 11] == 255


def config(teacher, tmp_path, **changes):
    values = dict(run=str(teacher), count=10, out=str(tmp_path / "s.npz"), **QUICK)
    return make(SampleConfig, {**values, **changes})


def test_files(teacher, model, tmp_path):
    out = sample_to_file(config(teacher, tmp_path))
    with np.load(out) as data:
        images, labels = data["arr_0"], data["arr_1"]
    assert images.shape == (10, 8, 8, 1)
    assert images.dtype == np.uint8
    assert np.array_equal(images, sample(model, 10, **QUICK)[0])
    assert labels.shape == (10,)
    told = json.loads(out.with_suffix(".json").read_text())
    assert told["rounding"] == "floor"
    assert told["steps"] == 6
    assert Image.open(out.with_suffix(".png")).size[0] > 80
    assert not list(tmp_path.glob("*.parts"))
    with pytest.raises(UserError, match="is there already"):
        sample_to_file(config(teacher, tmp_path))


def test_interrupted_sampling_goes_on(teacher, tmp_path, monkeypatch):
    import dit_shd.sample_files as module

    straight = sample_to_file(config(teacher, tmp_path, out=str(tmp_path / "straight.npz")))
    drawn, real = [], module.draw

    def dies(*arguments):
        drawn.append(arguments[3])
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, "draw", dies)
    with pytest.raises(KeyboardInterrupt):
        sample_to_file(config(teacher, tmp_path))
    with pytest.raises(UserError, match="parts of other settings"):
        sample_to_file(config(teacher, tmp_path, seed=3))
    out = sample_to_file(config(teacher, tmp_path))
    assert [r.start for r in drawn] == [0, 4, 4, 8]
    with np.load(straight) as a, np.load(out) as b:
        assert np.array_equal(a["arr_0"], b["arr_0"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps: wanted 1 to 1000"),
        ({"steps": 1001}, "steps: wanted 1 to 1000"),
        ({"count": 0}, "count: wanted 1 or more"),
        ({"run": "nowhere"}, "wanted a run folder"),
        ({"vae": "no/such/vae"}, "vae: 'no/such/vae' is neither"),
        ({"solver": "heun"}, r"solver: wanted ddpm \| ddim"),
    ],
)
def test_bad_requests_are_one_line_and_leave_nothing(teacher, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        sample_to_file(config(teacher, tmp_path, **changes))
    assert not list(tmp_path.iterdir())


def test_a_vae_decodes(teacher, tmp_path):
    """A small AutoencoderKL of our own, saved and named by its folder."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    vae.save_pretrained(tmp_path / "vae")
    images, _ = sample(load(teacher), 2, vae=str(tmp_path / "vae"), **QUICK)
    assert images.shape == (2, 16, 16, 3)

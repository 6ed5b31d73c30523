"""Sampling: guidance, determinism, solvers, files."""

import numpy as np
import pytest
import torch

from dit_shd.config import make
from dit_shd.decoder import Decoder
from dit_shd.diffusion import Schedule
from dit_shd.errors import UserError
from dit_shd.guidance import Guided, guidance_weight
from dit_shd.models import load
from dit_shd.pictures import grid, to_uint8
from dit_shd.sampler import SampleConfig, denoise, sample

QUICK = dict(steps=6, batch_size=4, guided_channels=None)


@pytest.fixture(scope="module")
def model(teacher):
    return load(teacher).eval()


def test_power_cosine_ramps_from_one_to_the_scale():
    config, constant = SampleConfig(guidance=3.8), SampleConfig(guidance=3.8, guidance_schedule="constant")
    for t in (0, 250, 500, 999):
        expected = 1 + 2.8 * (1 - np.cos(np.pi * (1 - t / 1000) ** 4)) / 2
        assert guidance_weight(config, t) == pytest.approx(expected, rel=1e-12)
        assert guidance_weight(constant, t) == 3.8


def test_guidance_by_hand():
    """Guided channels extrapolate, the others and the variance are the conditional half's."""

    class Fake(torch.nn.Module):
        config = type("C", (dict,), {"__getattr__": dict.__getitem__})(num_classes=5, in_channels=2)

        def forward(self, x, t, class_labels, return_dict):
            return (torch.cat([x, x], 1) * 0 + class_labels.view(-1, 1, 1, 1).float(),)

    config = SampleConfig(guidance=3.0, guidance_schedule="constant", guided_channels=1)
    out = Guided(Fake(), torch.tensor([1, 2]), config)(torch.zeros(2, 2, 1, 1), 9)
    assert out[:, :, 0, 0].tolist() == [[5 + 3 * (1 - 5), 1, 1, 1], [5 + 3 * (2 - 5), 2, 2, 2]]
    plain = Guided(Fake(), torch.tensor([1, 2]), SampleConfig(guidance=1.0))(torch.zeros(2, 2, 1, 1), 9)
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


@pytest.mark.parametrize(
    ("solver", "steps"), [("ddim", 250), ("ddim", 300), ("ddim", 600), ("dpm++", 100), ("ddpm", 300)]
)
def test_solvers_draw_a_gaussian_from_its_exact_score(solver, steps):
    """Data N(0.2, 0.3^2): the noise the ideal network predicts is known, and so is what must come out."""
    mean, std, schedule = 0.2, 0.3, Schedule.linear()

    def predict(x, t):
        kept = torch.from_numpy(schedule.alphas_cumprod)[t].float()
        return (x - kept.sqrt() * mean) * (1 - kept).sqrt() / (kept * std**2 + 1 - kept)

    config = make(SampleConfig, dict(solver=solver, steps=steps))
    x = denoise(predict, config, range(40), (1, 8, 8), torch.device("cpu"))
    assert x.mean().item() == pytest.approx(mean, abs=0.02)
    assert x.std().item() == pytest.approx(std, rel=0.06)


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
    latents = torch.randn(1, 1, 4, 4)
    decode = Decoder.load(str(tmp_path / "vae"), 1, torch.device("cpu"))
    with torch.no_grad():
        torch.testing.assert_close(decode(latents), vae.eval().decode(latents / 0.18215).sample)


def test_sampling_in_bf16_stays_close_and_leaves_the_mode_alone(model):
    a, b = sample(model, 3, **QUICK)[0], sample(model, 3, precision="bf16", **QUICK)[0]
    assert 0 < np.abs(a.astype(float) - b).mean() < 8
    model.train()
    sample(model, 1, **QUICK)
    assert model.training
    model.eval()


def test_a_model_that_is_not_finite_says_so(teacher):
    broken = load(teacher)
    with torch.no_grad():
        broken.pos_embed.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        sample(broken, 2, **QUICK)
    with pytest.raises(UserError, match="wanted classes 0 to 2, found 7 to 7"):
        sample(load(teacher), 1, labels=[7], **QUICK)

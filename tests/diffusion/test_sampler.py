"""Sampling: determinism, solvers, labels, decoding. Guidance is in test_guidance.py, files in test_generation.py."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.configuration_utils import FrozenDict

from dit_shd.core import rng
from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.data.decoder import Decoder
from dit_shd.data.open_images import open_images
from dit_shd.data.pixels import grid, to_uint8
from dit_shd.diffusion.sample_config import SampleConfig
from dit_shd.diffusion.sampler import draw, label_plan, of_model, sample
from dit_shd.diffusion.schedule import Schedule
from dit_shd.diffusion.solvers import denoise, noises
from dit_shd.models.loading import load

QUICK = dict(steps=6, batch_size=4, guided_channels=None)


@pytest.fixture(scope="module")
def model(teacher):
    return load(teacher).eval()


def test_noise_drawn_ahead_is_the_noise_of_its_step():
    config = SampleConfig(seed=3)
    found = list(noises(config, [5, 9], (1, 2, 2), torch.device("cpu"), [0, 7, 6]))
    assert [noise.shape for noise in found] == [(2, 1, 2, 2)] * 3
    for step, noise in zip([0, 7, 6], found):
        for i, row in zip([5, 9], noise):
            alone = rng.stream(3, "sample", step, i).standard_normal((1, 2, 2), dtype=np.float32)
            np.testing.assert_array_equal(row.numpy(), alone)


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


def test_labels_by_name(teacher):
    """Those of the model's config, in any case, by the command line as by Python; what it does not have is refused."""
    model = load(teacher).eval()
    model.register_to_config(class_names=["dark", "Bright sky", None])
    assert sample(model, labels="bright sky, dark", **QUICK)[1].tolist() == [1, 0]
    assert sample(model, labels=["Dark"], count=1, **QUICK)[1].tolist() == [0]
    config = of_model(make(SampleConfig, {"labels": "dark,dark,bright sky"}).counted(), model)
    assert (config.labels, config.count) == ([0, 0, 1], 3)
    with pytest.raises(UserError, match="found 'drak'; did you mean dark"):
        sample(model, labels="drak", **QUICK)
    with pytest.raises(UserError, match="labels: wanted random, balanced or classes as 3,3,7, found none"):
        sample(model, labels=" , ", count=1, **QUICK)


def test_numbers_of_classes_that_have_other_numbers_for_names_are_said(teacher, caplog):
    model = load(teacher).eval()
    model.register_to_config(class_names=["1", "2", "4"])
    for labels in ([1], 1, "1,1"):
        assert set(sample(model, labels=labels, **QUICK)[1]) == {1}
        said = "labels: numbers are places in the order of the classes: 1 is the class called '2'; the class called '1'"
        assert [record.message for record in caplog.records] == [f"{said} is 0"]
        caplog.clear()
    model.register_to_config(class_names=["0", "1", "two"])
    sample(model, labels=[0, 1, 2], **QUICK)
    assert not caplog.text


@pytest.mark.parametrize("count", ["2", 2.0, np.int64(2)])
def test_a_count_as_notebooks_make_it(model, count):
    with pytest.raises(UserError, match=r"^count: wanted a whole number, found"):
        sample(model, [count], **QUICK)
    assert sample(model, count, **QUICK)[1].shape == sample(model, count, labels=1, **QUICK)[1].shape == (2,)


def test_labels(model):
    assert sample(model, 5, labels="balanced", **QUICK)[1].tolist() == [0, 1, 2, 0, 1]
    assert sample(model, 2, labels=[2, 2], **QUICK)[1].tolist() == [2, 2]
    with pytest.raises(UserError, match="wanted 3"):
        sample(model, 3, labels=[1], **QUICK)
    parts, whole = (sample(model, labels=[0, 1, 2, 1, 0], **{**QUICK, "batch_size": size})[0] for size in (3, 5))
    assert np.abs(parts.astype(int) - whole).max() <= 1, "each image is of its own class, in whatever batch"
    for one in (np.int64(2), torch.tensor(2), np.array(2, np.uint8)):
        assert sample(model, 2, labels=one, **QUICK)[1].tolist() == [2, 2]
    assert sample(model, labels=torch.tensor([1, 2]), **QUICK)[1].tolist() == [1, 2]
    for none in ([1.7, 0.2], 1.7, np.array([1.0, 2.0]), ["1"], [[1, 2]]):
        with pytest.raises(UserError, match=r"labels: wanted classes \(integers\), random or balanced, found"):
            sample(model, 2, labels=none, **QUICK)
    draws = sample(model, 300, steps=1, batch_size=300)[1]
    assert np.bincount(draws, minlength=3).min() > 70
    first, other = (label_plan(SampleConfig(seed=seed), range(3), range(300)) for seed in (0, 1))
    assert np.array_equal(first, draws) and 0.2 < (first == other).mean() < 0.5


def test_rounding(model):
    levels = torch.tensor([-1.5, -1.0, -1 + 1.6 / 127.5, 1.0, 3.0]).view(1, 1, 1, 5)
    assert to_uint8(levels, "floor").ravel().tolist() == to_uint8(levels).ravel().tolist() == [0, 0, 1, 255, 255]
    assert to_uint8(levels, "nearest").ravel().tolist() == [0, 0, 2, 255, 255]
    config, labels, drawn = of_model(SampleConfig(steps=2), model), np.array([0, 1]), []
    for rounding in ("floor", "nearest"):
        images = draw(
            model, replace(config, rounding=rounding), [0, 1], labels, lambda x: drawn.append(x.tanh()) or drawn[-1]
        )
        assert np.array_equal(images, to_uint8(drawn[0], rounding))
    assert not np.array_equal(images, to_uint8(drawn[0], "floor"))


def test_grid_places_images_row_by_row():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 4, 1), dtype=np.uint8)
    sheet = np.asarray(grid(images, columns=3, gap=1))
    assert sheet.shape == (2 * 4 + 1, 3 * 5 + 1)
    assert sheet[1, 1] == 0
    assert sheet[5, 6] == 4
    assert sheet[5, 11] == 255


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """A small AutoencoderKL of our own, saved; half the size of its images, one latent channel."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()
    folder = tmp_path_factory.mktemp("vae")
    model.save_pretrained(folder)
    return folder, model


def test_a_vae_decodes_one_image_at_a_time(teacher, vae):
    folder, own = vae
    images, _ = sample(load(teacher), 2, vae=str(folder), **QUICK)
    assert images.shape == (2, 16, 16, 3)
    with torch.autocast("cpu", torch.bfloat16):  # the caller's own
        assert np.array_equal(sample(load(teacher), 2, vae=str(folder), **QUICK)[0], images)
    elsewhere = load(teacher)
    elsewhere.register_to_config(_name_or_path="somebody/dit")  # as diffusers names what it had from the hub
    assert np.array_equal(sample(elsewhere, 2, vae=str(folder), **QUICK)[0], images)
    decode = Decoder.load(str(folder), 1, torch.device("cpu"))
    latents, given = torch.randn(3, 1, 4, 4), []
    decode.vae.decoder.register_forward_pre_hook(lambda module, inputs: given.append(len(inputs[0])))
    found = decode(latents)
    assert given == [1, 1, 1]
    with torch.no_grad():
        torch.testing.assert_close(found, own.decode(latents / 0.18215).sample)
    torch.testing.assert_close(decode(latents[1:2]), found[1:2], rtol=0, atol=0)
    assert len(decode.digest) == 64


def test_a_vae_that_does_not_fit_is_refused_before_anything_is_drawn(teacher, vae, tmp_path):
    folder, own = vae
    with pytest.raises(UserError, match="decodes 1 channels, the model has 4"):
        Decoder.load(str(folder), 4, torch.device("cpu"))
    own.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "layers_per_block": 2}))
    with pytest.raises(UserError, match=r"vae: .*: the weights do not fit config\.json"):
        Decoder.load(str(tmp_path), 1, torch.device("cpu"))
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"vae: .*: wanted .*, found no weights"):
        Decoder.load(str(tmp_path), 1, torch.device("cpu"))


def test_sampling_in_bf16_stays_close_and_leaves_the_mode_alone(model):
    computed: list[torch.dtype] = []
    modes: list[bool] = []

    def noted(module, _, output):
        computed.append(output.dtype)
        modes.append(module.training)

    hook = model.x_embedder.proj.register_forward_hook(noted)
    a, b = sample(model, 3, **QUICK)[0], sample(model, 3, precision="bf16", **QUICK)[0]
    assert computed[0] == torch.float32 and computed[-1] == torch.bfloat16
    assert np.abs(a.astype(float) - b).mean() < 8
    model.train()
    sample(model, 1, **QUICK)
    hook.remove()
    assert model.training and not any(modes)
    model.eval()


def test_a_model_that_is_not_finite_says_so(teacher):
    broken = load(teacher)
    with torch.no_grad():
        broken.pos_embed.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        sample(broken, 2, **QUICK)
    with pytest.raises(UserError, match="wanted classes 0 to 2, found 7 to 7"):
        sample(load(teacher), 1, labels=[7], **QUICK)


@pytest.mark.slow
def test_a_compiled_network_samples_the_same(model):
    """Needs a C++ compiler."""
    a, b = sample(model, 6, **QUICK)[0], sample(model, 6, compile=True, **QUICK)[0]
    assert np.abs(a.astype(int) - b).max() <= 1


@pytest.mark.slow
def test_without_a_compiler_compile_is_one_line(teacher, tmp_path, root):
    environment = {**os.environ, "CXX": "/nonexistent", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "dit_shd", "sample", str(teacher), "count=1", "steps=2", "compile=true"]
    command += [f"out={tmp_path / 's.npz'}"]
    environment["PYTHONPATH"] = str(root)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("dit-shd sample: compile=true: torch.compile failed")


def test_conventions_give_the_same_images(flow_teacher):
    """The same network, asked in each convention: SiT's answers with the other sign, at the other time."""
    network = load(flow_teacher).eval()

    class Other(torch.nn.Module):
        def __init__(self, prediction):
            super().__init__()
            self.inner, self.config = network, FrozenDict({**network.config, "prediction": prediction})

        def forward(self, x, t, class_labels, return_dict):
            sit = self.config["prediction"] == "velocity_sit"
            output = self.inner(x, 1000 * (1 - t if sit else t), class_labels=class_labels, return_dict=False)[0]
            return (-output if sit else output,)

    options = dict(steps=3, guidance=2.0, seed=4)
    wanted, _ = sample(network, 5, **options)
    assert len(np.unique(wanted)) > 20
    for prediction in ("velocity_sit", "velocity_repa"):
        found, _ = sample(Other(prediction), 5, **options)
        assert np.abs(found.astype(int) - wanted).max() <= 1  # 1000 (1 - (1 - sigma)) rounds


@pytest.mark.parametrize(
    ("kind", "solver", "message"),
    [
        ("velocity", "ddpm", "^solver: ddpm is for models that predict noise, and this one predicts velocity_sd3; wan"),
        ("velocity", "dpm[+][+]", "wanted euler, heun or auto$"),
        ("noise", "heun", "^solver: heun is for models that predict velocities, and this one predicts noise; wanted d"),
    ],
)
def test_a_solver_for_models_of_another_kind_is_refused(model, flow_teacher, kind, solver, message):
    network = load(flow_teacher) if kind == "velocity" else model
    with pytest.raises(UserError, match=message):
        sample(network, 1, steps=2, solver=solver.replace("[+]", "+"))


def test_a_shift_of_the_steps_of_a_model_of_noise_is_refused(model):
    with pytest.raises(UserError, match=r"^shift: moves the steps of models that predict velocities, found 2\.0"):
        sample(model, 1, steps=2, shift=2.0)


def test_the_default_solver_fits_the_model(model, flow_teacher):
    for network, solver in ((model, "ddpm"), (load(flow_teacher).eval(), "euler")):
        images = [sample(network, 2, steps=3, solver=name)[0] for name in ("auto", solver)]
        np.testing.assert_array_equal(*images)


def test_few_guided_channels_of_many_are_named(caplog):
    channels = 16
    model = type("M", (torch.nn.Module,), {"config": FrozenDict(in_channels=channels, sample_size=8, num_classes=2)})()
    of_model(make(SampleConfig, {"guidance": 2}), model)
    assert "guided_channels: 3 of 16 channels are guided" in caplog.text
    caplog.clear()
    for values in ({"guidance": 1}, {"guidance": 2, "guided_channels": None}):
        of_model(make(SampleConfig, values), model)
    assert not caplog.text


def test_samples_in_a_script_are_those_of_their_own_settings(model, tmp_path):
    """A JSON of another file's name was read as how they were made."""
    drawn = sample(model, labels=1, steps=2, guidance=1.0)
    assert drawn.labels.tolist() == [1]
    (tmp_path / "s.json").write_text('{"steps": 250, "count": 50}')
    with pytest.raises(UserError, match=r"s\.json: is there already; choose another name"):
        drawn.save(tmp_path / "s.npz")
    (tmp_path / "s.json").rename(tmp_path / "t.json")
    drawn.save(tmp_path / "s.npz").rename(tmp_path / "t.npz")
    assert open_images(str(tmp_path / "t.npz"), "samples").sidecar is None  # of 50 images
    for key, value in (("out", "x.npz"), ("force", True), ("prompts", "x.txt")):
        with pytest.raises(UserError, match=f"{key}: is for dit-shd sample, which writes files"):
            sample(model, 1, **{key: value})

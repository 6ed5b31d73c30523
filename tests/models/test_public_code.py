"""Ours beside the public code of MDT, DiT, SiT and REPA, where that is at hand:

    DIT_SHD_PUBLIC_MDT=/path/to/MDT DIT_SHD_PUBLIC_DIT=/path/to/DiT DIT_SHD_PUBLIC_SIT=/path/to/SiT \\
    DIT_SHD_PUBLIC_REPA=/path/to/REPA make test

Skipped otherwise; test_mdt.py, test_dit.py and test_diffusion.py hold without it.
"""

import importlib
import importlib.util
import os
import sys
import types
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from dit_shd.diffusion import solvers
from dit_shd.diffusion.denoiser import NO_LABEL, Denoiser
from dit_shd.diffusion.flow import point_on_path, velocity_error
from dit_shd.diffusion.guidance import Guided
from dit_shd.diffusion.objectives import split
from dit_shd.diffusion.process import Ddpm
from dit_shd.diffusion.sample_config import SampleConfig
from dit_shd.diffusion.schedule import Schedule
from dit_shd.models import loading
from dit_shd.models.families.dit import DiT
from dit_shd.models.families.mdt import MDTv2


def checkout(variable):
    path = os.environ.get(variable)
    if not path:
        pytest.skip(f"{variable} names no checkout of the public code")
    return path


@pytest.fixture(scope="module")
def public():
    """MDT's model and diffusion modules (its package's own __init__ wants fairscale and blobfile)."""
    package = types.ModuleType("masked_diffusion")
    package.__path__ = [f"{checkout('DIT_SHD_PUBLIC_MDT')}/masked_diffusion"]
    sys.modules["masked_diffusion"] = package
    sys.modules.setdefault("timm.models.layers", types.SimpleNamespace(trunc_normal_=torch.nn.init.trunc_normal_))
    return types.SimpleNamespace(
        **{n: importlib.import_module(f"masked_diffusion.{n}") for n in ("models", "gaussian_diffusion", "respace")}
    )


@pytest.fixture(scope="module")
def public_dit():
    """DiT's model module."""
    spec = importlib.util.spec_from_file_location("public_dit", f"{checkout('DIT_SHD_PUBLIC_DIT')}/models.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def module_of(variable, file):
    """A module of a checkout that imports nothing else of it."""
    spec = importlib.util.spec_from_file_location(f"{variable}_{Path(file).stem}", f"{checkout(variable)}/{file}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pair(public, **options):
    torch.manual_seed(0)
    theirs = public.models.MDTv2(**options, mask_ratio=0.3).eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.05)
    return theirs, MDTv2.from_public(theirs.state_dict()).eval()


SIZES = [
    dict(input_size=8, hidden_size=48, depth=6, num_heads=4, num_classes=10, decode_layer=2),
    dict(input_size=16, patch_size=4, hidden_size=48, depth=8, num_heads=3, num_classes=3, decode_layer=4),
    dict(input_size=32, hidden_size=384, depth=12, num_heads=6, decode_layer=6),
]


@pytest.mark.parametrize("options", SIZES)
def test_model(public, monkeypatch, options):
    theirs, ours = pair(public, **options)
    side, classes = options["input_size"], theirs.y_embedder.num_classes
    x, t, y = torch.randn(2, 4, side, side), torch.tensor([3, 999]), torch.tensor([1, classes])
    state = theirs.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in ours.to_public().items())
    assert ours.to_public().keys() == state.keys()
    masks = []
    original = theirs.random_masking
    monkeypatch.setattr(theirs, "random_masking", lambda *a: masks.append(original(*a)) or masks[-1])
    for masked in (False, True):
        want = theirs(x, t, y, enable_mask=masked)
        found = ours(x, t, y, keep=masks[-1][3] if masked else None).sample
        assert (found - want).abs().max() <= 5e-6 * want.abs().max()
        weight = torch.randn_like(want)
        wanted = torch.autograd.grad((want * weight).sum(), list(theirs.parameters()), allow_unused=True)
        grads = dict(
            zip(
                dict(ours.named_parameters()),
                torch.autograd.grad((found * weight).sum(), list(ours.parameters()), allow_unused=True),
            )
        )
        for (name, _), w in zip(theirs.named_parameters(), wanted):
            assert (w is None) == (grads[name] is None), name
            if w is not None:
                assert (grads[name] - w).abs().max() <= 2e-5 * w.abs().max() + 1e-9, name


def test_guided(public):
    theirs, ours = pair(public, **SIZES[0])
    x, y = torch.randn(2, 4, 8, 8), torch.tensor([1, 2])
    for t in (3, 700):
        want = theirs.forward_with_cfg(
            torch.cat([x, x]),
            torch.full((4,), t),
            torch.cat([y, torch.full_like(y, 10)]),
            cfg_scale=3.8,
            scale_pow=4.0,
        )[:2]
        found = Guided(ours, y, SampleConfig(guidance=3.8, guidance_tolerance=0.0))(x, t)
        assert (found - want).abs().max() <= 5e-6 * want.abs().max()


def process(public, count):
    gd = public.gaussian_diffusion
    return public.respace.SpacedDiffusion(
        use_timesteps=public.respace.space_timesteps(1000, [count]),
        betas=gd.get_named_beta_schedule("linear", 1000),
        model_mean_type=gd.ModelMeanType.EPSILON,
        model_var_type=gd.ModelVarType.LEARNED_RANGE,
        loss_type=gd.LossType.MSE,
    )


def test_training_losses(public):
    schedule = Schedule.linear()
    x_0, noise, output = torch.randn(64, 4, 8, 8), torch.randn(64, 4, 8, 8), torch.randn(64, 8, 8, 8)
    t = torch.cat([torch.zeros(8, dtype=torch.long), torch.randint(0, 1000, (56,))])
    want = process(public, 1000).training_losses(lambda *_: output, x_0, t, noise=noise)
    ddpm, x_t = Ddpm(schedule, gamma=5.0), schedule.add_noise(x_0, noise, t)
    found = ddpm.losses(*ddpm.prediction(output, x_t, t), x_0, noise, x_t, t)
    torch.testing.assert_close(found["noise"], want["mse"], rtol=1e-6, atol=0)
    torch.testing.assert_close(found["variational"], want["vb"], rtol=2e-6, atol=1e-7)


def test_whole_trajectory(public):
    """250 ancestral steps of a small network with the same noise: bit for bit."""
    spaced = Schedule.linear().respaced(250)
    theirs = process(public, 250)
    assert spaced.timesteps.tolist() == theirs.timestep_map
    torch.manual_seed(0)
    kernel = torch.randn(8, 4, 3, 3) * 0.1

    def model(x, t):
        return torch.tanh(torch.nn.functional.conv2d(x, kernel, padding=1) + t.view(-1, 1, 1, 1) / 1000)

    start = torch.randn(2, 4, 8, 8)
    torch.manual_seed(1)
    want = theirs.p_sample_loop(model, start.shape, noise=start.clone(), clip_denoised=False, device="cpu")
    torch.manual_seed(1)
    x = start
    for step in reversed(range(250)):
        predicted, v = split(model(x, torch.full((2,), int(spaced.timesteps[step]))), 4)
        x = spaced.ddpm_step(x, predicted, v, torch.full((2,), step), torch.randn_like(x))
    assert torch.equal(x, want)


DIT_SIZES = [
    dict(input_size=8, hidden_size=48, depth=3, num_heads=4, num_classes=10),
    dict(input_size=16, patch_size=4, hidden_size=48, depth=2, num_heads=3, num_classes=3, learn_sigma=False),
    dict(input_size=32, hidden_size=384, depth=12, num_heads=6),
]


def pair_of_dits(public_dit, **options):
    torch.manual_seed(0)
    theirs = public_dit.DiT(**options).eval()
    for p in theirs.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.05)
    return theirs, DiT.from_public(theirs.state_dict(), options["num_heads"]).eval()


@pytest.mark.parametrize("options", DIT_SIZES)
def test_dit(public_dit, options):
    theirs, ours = pair_of_dits(public_dit, **options)
    side, classes, state = options["input_size"], theirs.y_embedder.num_classes, theirs.state_dict()
    assert ours.to_public().keys() == state.keys()
    assert all(torch.equal(v, state[k]) for k, v in ours.to_public().items())
    fresh = DiT(**{k: v for k, v in ours.config.items() if k[0] != "_"})
    torch.testing.assert_close(fresh.pos_embed, theirs.pos_embed, rtol=0, atol=1e-6)
    x, t, y = torch.randn(2, 4, side, side), torch.tensor([3, 999]), torch.tensor([1, classes])
    want, found = theirs(x, t, y), ours(x, t, y).sample
    assert (found - want).abs().max() <= 5e-6 * want.abs().max()
    weight = torch.randn_like(want)
    named = [(k, p) for k, p in theirs.named_parameters() if p.requires_grad]
    wanted = torch.autograd.grad((want * weight).sum(), [p for _, p in named])
    own = dict(ours.named_parameters())
    grads = torch.autograd.grad((found * weight).sum(), [own[k] for k, _ in named])
    for (name, _), w, g in zip(named, wanted, grads):
        assert (g - w).abs().max() <= 2e-5 * w.abs().max() + 1e-9, name


def test_guided_dit(public_dit):
    """Constant guidance of three channels, DiT's protocol."""
    theirs, ours = pair_of_dits(public_dit, **DIT_SIZES[0])
    x, y = torch.randn(2, 4, 8, 8), torch.tensor([1, 2])
    both = torch.cat([y, torch.full_like(y, 10)])
    want = theirs.forward_with_cfg(torch.cat([x, x]), torch.full((4,), 700), both, cfg_scale=1.5)[:2]
    config = SampleConfig(guidance=1.5, guidance_schedule="constant", guided_channels=3)
    assert (Guided(ours, y, config)(x, 700) - want).abs().max() <= 5e-6 * want.abs().max()


@pytest.mark.parametrize("size", ["S/2", "B/4", "L/8", "XL/2"])
def test_sizes_of_dit(public_dit, size):
    with torch.device("meta"):
        theirs, ours = public_dit.DiT_models[f"DiT-{size}"](), DiT.from_options(size)
    shapes = {k: v.shape for k, v in theirs.state_dict().items()}
    assert {k: v.shape for k, v in ours.state_dict().items()} == shapes
    assert ours.config.num_attention_heads == theirs.num_heads


def flow_pair(theirs, prediction):
    """A public model of velocities with random weights, and ours of its tensors."""
    for p in theirs.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.05)
    return theirs.eval(), loading.of_public(theirs.state_dict(), 4, prediction).eval()


@pytest.mark.parametrize("learn_sigma", [True, False])
def test_loss_and_ode_of_sit(learn_sigma):
    """Their transport's training loss from the same noise and times; their guided drift by steps of Euler and Heun."""
    torch.manual_seed(0)
    models = module_of("DIT_SHD_PUBLIC_SIT", "models.py")
    sizes = dict(input_size=8, hidden_size=48, depth=3, num_heads=4, num_classes=10, learn_sigma=learn_sigma)
    theirs, ours = flow_pair(models.SiT(**sizes), "velocity_sit")
    package = types.ModuleType("transport")
    package.__path__ = [f"{checkout('DIT_SHD_PUBLIC_SIT')}/transport"]
    sys.modules["transport"] = package
    sys.modules.setdefault("torchdiffeq", types.SimpleNamespace(odeint=None))
    public = importlib.import_module("transport.transport")
    linear = dict(model_type=public.ModelType.VELOCITY, path_type=public.PathType.LINEAR)
    transport = public.Transport(**linear, loss_type=public.WeightType.NONE, train_eps=0, sample_eps=0)
    x_0, y = torch.randn(5, 4, 8, 8), torch.tensor([0, 3, 9, 10, 4])
    torch.manual_seed(7)
    wanted = transport.training_losses(theirs, x_0, dict(y=y))["loss"]
    torch.manual_seed(7)
    noise, sigma = torch.randn_like(x_0), 1 - torch.rand(5)
    labels = torch.where(y == 10, NO_LABEL, y)
    found = Denoiser(ours).predict(point_on_path(x_0, noise, sigma), sigma, labels)
    found = velocity_error(found, noise - x_0, torch.ones(5))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    z, y = torch.randn(2, 4, 8, 8), torch.tensor([1, 2])
    both = dict(y=torch.cat([y, torch.full_like(y, 10)]), cfg_scale=1.5)
    drift = transport.get_drift()
    times = torch.linspace(0, 1, 6)
    for solver in ("euler", "heun"):
        x = torch.cat([z, z])
        with torch.no_grad():
            for now, after in pairwise(times.tolist()):
                at = lambda x, t: drift(x, torch.full((4,), t), theirs.forward_with_cfg, **both)  # noqa: E731
                slope = at(x, now)
                if solver == "heun" and after < 1:
                    slope = (slope + at(x + (after - now) * slope, after)) / 2
                x = x + (after - now) * slope
            config = SampleConfig(solver=solver, steps=5, guidance=1.5, guidance_schedule="constant", guided_channels=3)
            found = flow_of(Guided(ours, y, config), config, z)
        torch.testing.assert_close(found, x[:2], rtol=1e-4, atol=1e-5)


def test_loss_and_samples_of_repa():
    """Their loss without the projection, and their Euler and Heun samplers, guided."""
    torch.manual_seed(0)
    models = module_of("DIT_SHD_PUBLIC_REPA", "models/sit.py")
    sizes = dict(input_size=8, hidden_size=48, decoder_hidden_size=48, depth=3, num_heads=4, num_classes=1000)
    theirs, ours = flow_pair(models.SiT(**sizes, encoder_depth=2, z_dims=[8], qk_norm=False), "velocity_repa")
    loss, samplers = (module_of("DIT_SHD_PUBLIC_REPA", file) for file in ("loss.py", "samplers.py"))
    x_0, y = torch.randn(5, 4, 8, 8), torch.tensor([0, 3, 9, 1000, 4])
    torch.manual_seed(7)
    wanted, _ = loss.SILoss()(theirs, x_0, dict(y=y), zs=[torch.zeros(5, 16, 8)])
    torch.manual_seed(7)
    sigma = torch.rand(5, 1, 1, 1).flatten()
    noise = torch.randn_like(x_0)
    labels = torch.where(y == 1000, NO_LABEL, y)
    found = Denoiser(ours).predict(point_on_path(x_0, noise, sigma), sigma, labels)
    torch.testing.assert_close(velocity_error(found, noise - x_0, torch.ones(5)), wanted, rtol=1e-5, atol=1e-6)
    z, y = torch.randn(2, 4, 8, 8), torch.tensor([1, 2])
    for heun in (False, True):
        wanted = samplers.euler_sampler(theirs, z, y, num_steps=5, heun=heun, cfg_scale=1.5)
        options = dict(solver="heun" if heun else "euler", steps=5, guidance=1.5, guidance_schedule="constant")
        config = SampleConfig(**options, guided_channels=None)
        with torch.no_grad():
            found = flow_of(Guided(ours, y, config), config, z)
        torch.testing.assert_close(found, wanted.float(), rtol=1e-4, atol=1e-5)


def flow_of(guided, config, z):
    """Our solver from some noise of another's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solvers, "noises", lambda *_: iter([z]))
        return solvers.integrate(guided, config, range(len(z)), z.shape[1:], z.device)

"""Solvers at every number of steps: laws of Gaussian data, whose exact noise is known, and float64 loops of our own."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.configuration_utils import FrozenDict

from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.diffusion.sample_config import SampleConfig
from dit_shd.diffusion.sampled_run import of_run
from dit_shd.diffusion.sampler import sample
from dit_shd.diffusion.schedule import FEWEST, Schedule
from dit_shd.diffusion.solvers import denoise, network_calls, noises, solve
from dit_shd.models.loading import load
from dit_shd.tasks import TASKS
from dit_shd.training.config import TrainConfig

MEAN, STD = 0.3, 0.5
SOLVERS = ("ddpm", "ddim", "dpm++")
CPU = torch.device("cpu")


def linear(length: int) -> np.ndarray:
    """The alphas_cumprod of DDPM's linear schedule, written down again."""
    return np.cumprod(1 - np.linspace(0.1 / length, 20 / length, length))


def exact_noise(x: np.ndarray, kept: float) -> np.ndarray:
    """E[noise | x_t] of data N(MEAN, STD^2)."""
    return np.sqrt(1 - kept) * (x - np.sqrt(kept) * MEAN) / (kept * STD**2 + 1 - kept)


def drawn(solver: str, steps: int, length: int, images: int = 2) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """x_0 under the exact noise, the noise it came from, and the timesteps that were visited."""
    kept, visited = linear(length), []

    def predict(x, t):
        visited.append(t)
        return torch.from_numpy(exact_noise(x.double().numpy(), kept[t])).float()

    config = SampleConfig(solver=solver, steps=steps, diffusion_steps=length)  # type: ignore[arg-type]
    (start,) = noises(config, range(images), (1, 2, 2), CPU, [0])
    found = denoise(predict, config, range(images), (1, 2, 2), CPU)
    return found.double().numpy(), start.double().numpy(), visited


@pytest.mark.parametrize("length", [FEWEST, 50, 100, 400, 1000])
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_number_of_steps_goes_down_from_the_noisiest_and_stays_finite(solver, length):
    ends = {1, 2, 3, 7, length // 3, length // 2, length - 2, length - 1, length}
    for steps in range(1, length + 1) if length == FEWEST else sorted(ends):
        found, _, visited = drawn(solver, steps, length, images=1)
        assert visited[0] == length - 1, steps
        assert len(visited) == steps
        assert all(earlier > later for earlier, later in pairwise(visited)), steps
        assert np.isfinite(found).all(), steps


@pytest.mark.parametrize("length", [FEWEST, 1000])
@pytest.mark.parametrize("solver", SOLVERS)
def test_one_step_is_the_mean_of_the_data_given_the_noise(solver, length):
    found, start, _ = drawn(solver, 1, length)
    kept = linear(length)[-1]
    gain = np.sqrt(kept) * STD**2 / (kept * STD**2 + 1 - kept)
    rounding = 1e-6 / np.sqrt(kept)  # of float32 noise, which x_0 is divided out of
    np.testing.assert_allclose(found, MEAN + gain * (start - np.sqrt(kept) * MEAN), atol=rounding)


@pytest.mark.parametrize("length", [400, 1000])
@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("dpm++", 2)])
def test_more_steps_come_nearer_to_the_probability_flow(solver, order, length):
    """The flow keeps (x - its mean) / its deviation: the image of every noise is known, and so are mean and variance.

    An order of convergence p divides the error by 2^p where the steps are doubled.
    """
    kept, errors = linear(length)[-1], []
    for steps in (25, 50, 100, length):
        found, start, _ = drawn(solver, steps, length)
        spread = STD / np.sqrt(kept * STD**2 + 1 - kept)
        errors.append(np.abs(found - (MEAN + spread * (start - np.sqrt(kept) * MEAN))).max())
    assert errors[0] / errors[1] > 0.75 * 2**order
    assert errors[0] / errors[2] > 0.75 * 4**order
    assert errors[3] < 3 / length**order + 1e-4  # of float32


def ancestral(steps: int, length: int, noise: list[np.ndarray], deterministic: bool) -> np.ndarray:
    """DDPM's algorithm 2 (or DDIM's eq. 12) in float64 over the public code's timesteps."""
    kept = linear(length)
    visited = np.cumsum([0.0] + [(length - 1) / (steps - 1)] * (steps - 1)).round() if steps > 1 else [length - 1]
    visited = [int(t) for t in visited]
    x, fresh = noise[0], iter(noise[1:])
    for i in reversed(range(steps)):
        now, before = kept[visited[i]], kept[visited[i - 1]] if i else 1.0
        predicted = exact_noise(x, now)
        x_0 = (x - np.sqrt(1 - now) * predicted) / np.sqrt(now)
        if deterministic:
            x = np.sqrt(before) * x_0 + np.sqrt(1 - before) * predicted
        else:
            beta = 1 - now / before
            x = (beta * np.sqrt(before) * x_0 + (1 - before) * np.sqrt(1 - beta) * x) / (1 - now)
            x = x + (np.sqrt(beta) * next(fresh) if i else 0)
    return x


@pytest.mark.parametrize("steps", [1, 2, 3, 50, 99, 100])
@pytest.mark.parametrize("solver", ["ddim", "ddpm"])
def test_ancestral_and_implicit_steps_are_a_float64_loop(solver, steps):
    found, start, _ = drawn(solver, steps, 100)
    config = SampleConfig(solver=solver, steps=steps, diffusion_steps=100)
    later = noises(config, range(2), (1, 2, 2), CPU, list(reversed(range(1, steps))))
    noise = [start, *(each.double().numpy() for each in later)] if solver == "ddpm" else [start]
    rounding = 1e-6 / np.sqrt(linear(100)[-1])  # of float32 noise, which x_0 is divided out of
    np.testing.assert_allclose(found, ancestral(steps, 100, noise, solver == "ddim"), atol=rounding)


@pytest.mark.parametrize("length", [-1, 0, 1, 20, 10**6 + 1])
def test_a_schedule_that_cannot_be_is_refused_alike_in_training_and_sampling(length, tmp_path):
    wanted = r"^diffusion_steps: wanted 21 to 1,000,000 .* 20 / diffusion_steps, must be below 1"
    values = {"run": "r", "data": "digits", "student": "dit"}
    with pytest.raises(UserError, match=wanted.replace("diffusion_steps", r"task\.timesteps")):
        TASKS.build(make(TrainConfig, {**values, "diffusion_steps": length}).task, "task")
    with pytest.raises(UserError, match=wanted):
        make(SampleConfig, {"diffusion_steps": length, "steps": 1}).check()
    with pytest.raises(UserError, match=wanted):
        Schedule.linear(length)
    (tmp_path / "config.yaml").write_text(f"diffusion_steps: {length}\n")
    with pytest.raises(UserError, match=wanted):
        of_run(make(SampleConfig, {"run": str(tmp_path), "steps": 1})).check()


def test_a_ramp_without_a_beginning_is_refused():
    """0 to a negative power: it overflows at the noisiest timesteps."""
    with pytest.raises(UserError, match=r"^guidance_power: wanted 0 or more, found -200"):
        make(SampleConfig, {"guidance_power": -200}).check()


def test_the_shortest_schedule_is_the_last_whose_betas_are_below_one():
    assert Schedule.linear(FEWEST).betas.max() < 1
    assert 20 / (FEWEST - 1) >= 1


class Constant(torch.nn.Module):
    """A model that gives `value` wherever it is asked, but `odd` at one timestep."""

    def __init__(self, value: float, odd: float, at: int = 333):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.value, self.odd, self.at = value, odd, at
        self.config = FrozenDict(num_classes=3, in_channels=1, sample_size=2)

    def forward(self, x, t, class_labels, return_dict):
        return (torch.full_like(x, self.odd if int(t[0]) == self.at else self.value),)


@pytest.mark.parametrize(
    ("model", "options", "culprit"),
    [
        (Constant(0.0, float("nan")), {"guidance": 1.0}, "the model's output at timestep 333 is not finite"),
        (Constant(3e38, 3e38), {"guidance": 1.0}, "what solver=ddim made in 4 steps of finite model outputs is not"),
    ],
)
def test_the_model_is_blamed_only_for_its_own_output(model, options, culprit):
    with pytest.raises(UserError, match=culprit):
        sample(model, 2, solver="ddim", steps=4, **options)


def test_guidance_that_overflows_is_named(teacher):
    with pytest.raises(UserError, match=r"under guidance=1e\+38 is not finite"):
        sample(load(teacher), 2, steps=1, guidance=1e38, guidance_schedule="constant")


# Of velocity


def exact_velocity(x, sigma):
    """E[noise - x_0 | x] of data N(MEAN, STD^2) on the straight path."""
    variance = (1 - sigma) ** 2 * STD**2 + sigma**2
    centred = (x - (1 - sigma) * MEAN) / variance
    return sigma * centred - (MEAN + (1 - sigma) * STD**2 * centred)


def flown(solver, steps, shift=None, images=2):
    """x_0 under the exact velocity, the noise it came from, and the sigmas that were visited."""
    visited = []

    def predict(x, sigma):
        visited.append(sigma)
        return exact_velocity(x, sigma)

    config = make(SampleConfig, {"solver": solver, "steps": steps, "shift": shift})
    (start,) = noises(config, range(images), (1, 2, 2), CPU, [0])
    found = solve(predict, config, range(images), (1, 2, 2), CPU)
    assert len(visited) == network_calls(config)
    return found.double(), start.double(), visited


@pytest.mark.parametrize("shift", [None, 0.5, 3.0])
@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_more_steps_come_nearer_to_the_flow(solver, order, shift):
    """The exact solution keeps (x - mean) / deviation: noise z ends at MEAN + STD z. Errors fall with the order."""
    errors = []
    for steps in (50, 100, 200):
        found, start, _ = flown(solver, steps, shift)
        errors.append(float((found - (MEAN + STD * start)).abs().max()))
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2**order, rel=0.25)
    assert errors[-1] < (0.02 if order == 1 else 1e-3)


@pytest.mark.parametrize("shift", [None, 1.0, 3.0])
def test_euler_is_diffusers(shift):
    """Its FlowMatchEulerDiscreteScheduler on the same sigmas, before its own shift."""
    found, start, visited = flown("euler", 7, shift)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift or 1.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 7, 7).tolist())
    x = start.float()
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas.tolist()):
        x = scheduler.step(exact_velocity(x, sigma), t, x, return_dict=False)[0]
    torch.testing.assert_close(scheduler.sigmas[:-1].double(), torch.tensor(visited).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.float(), x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_one_step_of_velocity_is_the_mean_of_the_data(solver):
    found, _, visited = flown(solver, 1)
    assert visited == [1.0]
    torch.testing.assert_close(found, torch.full_like(found, MEAN), atol=1e-6, rtol=0)

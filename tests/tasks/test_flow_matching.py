"""The task flow_matching: its loss by an independent float64 computation, what a student's config records, refusals."""

import json
import shutil
from functools import cache

import numpy as np
import pytest
import torch
from diffusers.configuration_utils import FrozenDict
from runs import drawn, refused, run
from torch import nn

from dit_shd.analysis.inputs import DatasetInputs
from dit_shd.core import rng
from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.data.datasets import DATASETS
from dit_shd.diffusion.label_teacher_check import LabelTeacherCheck
from dit_shd.diffusion.process import Flow
from dit_shd.diffusion.sample_config import SampleConfig
from dit_shd.diffusion.sampler import of_model, sample
from dit_shd.diffusion.schedule import Schedule
from dit_shd.models import loading
from dit_shd.models.prediction import CONVENTIONS
from dit_shd.tasks import TASKS
from dit_shd.tasks.diffusion import Diffusion
from dit_shd.tasks.flow_matching import FlowMatching


def task(shapes, **options):
    """The task, with the data of the tests and a student of 16 tokens."""
    made = TASKS.build(Plugin("flow_matching", options), "task")
    assert isinstance(made, FlowMatching)
    made.dataset, made.tokens = DATASETS.build(Plugin("npz", {"path": str(shapes)})), 16
    return made


# What is drawn, and the loss


@pytest.mark.parametrize("density", ["uniform", "logit_normal", "mode", "cosmap"])
@pytest.mark.parametrize("weighting", ["none", "cosmap", "sigma_sqrt"])
@pytest.mark.parametrize("prediction", CONVENTIONS)
def test_the_loss_is_an_independent_one_in_float64(shapes, flow_teacher, density, weighting, prediction):
    """By numpy from the stored pixels and the raw streams; the convention's target as its public code has it."""
    of_name = {"logit_normal": {"mean": 0.5, "std": 0.8}, "mode": {"scale": 1.1}}
    options = {"name": density, "shift": 1.7, "base_side": 16, **of_name.get(density, {})}
    own = task(shapes, timestep_density=options, weighting=weighting, label_dropout=0.4)
    batch = drawn(own, 3, range(6), seed=5)["plain"]
    model = loading.load(flow_teacher).eval()
    model.register_to_config(prediction=prediction)
    found = own.losses(own.predict(model, batch), batch)["velocity"]

    u = np.array([rng.stream(5, "timestep", 3, i).random() for i in range(6)])
    noise = np.stack([rng.stream(5, "noise/plain", 3, i).standard_normal((1, 8, 8), np.float32) for i in range(6)])
    drop = np.array([rng.stream(5, "label/plain", 3, i).random() for i in range(6)]) < 0.4
    archive = np.load(shapes)
    order = rng.permutation(5, "order", 0, 60)[24:30]
    x_0 = archive["arr_0"][order].transpose(0, 3, 1, 2).astype(np.float64) / 127.5 - 1
    sigma = {
        "uniform": lambda: u,
        "logit_normal": lambda: 1 / (1 + np.exp(-(0.5 + 0.8 * np.array([_normal_quantile(p) for p in u])))),
        "mode": lambda: 1 - u - 1.1 * (np.cos(np.pi * u / 2) ** 2 - 1 + u),
        "cosmap": lambda: 1 - 1 / (np.tan(np.pi * u / 2) + 1),
    }[density]()
    alpha = 1.7 * 8 / 16
    sigma = alpha * sigma / (1 + (alpha - 1) * sigma)
    s = sigma[:, None, None, None]
    x_t = (1 - s) * x_0 + s * noise
    time, target = {
        "velocity_sit": (1 - sigma, x_0 - noise),
        "velocity_repa": (sigma, noise - x_0),
        "velocity_sd3": (1000 * sigma, noise - x_0),
    }[prediction]
    labels = torch.tensor(np.where(drop, 3, archive["arr_1"][order]))
    with torch.no_grad():
        output = model.double()(torch.tensor(x_t), torch.tensor(time), labels, return_dict=False)[0].numpy()
    weight = {
        "none": np.ones(6),
        "cosmap": 2 / (np.pi - 2 * np.pi * sigma + 2 * np.pi * sigma**2),
        "sigma_sqrt": np.maximum(sigma, 1e-3) ** -2,
    }[weighting]
    wanted = weight * np.square(output - target).mean((1, 2, 3))
    assert drop.any() and not drop.all()
    np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=2e-5)


def _normal_quantile(p):
    from statistics import NormalDist

    return NormalDist().inv_cdf(p)


def test_passes_share_images_and_sigma_and_have_noise_drops_and_masks_of_their_own(shapes):
    own = task(shapes, mask_ratio=0.3, label_dropout=0.5)
    plain, masked = drawn(own, 2, range(8)).values()
    assert torch.equal(plain.x_0, masked.x_0) and torch.equal(plain.t, masked.t)
    assert not torch.equal(plain.noise, masked.noise) and not torch.equal(plain.labels, masked.labels)
    assert plain.keep is None and 8 <= masked.keep.shape[1] + 1 <= 12


def test_labels_drops_and_masks_are_those_of_diffusion(shapes):
    """The same plan: only the path from data to noise differs."""
    flow, ddpm = task(shapes, mask_ratio=0.3, label_dropout=0.5), Diffusion(mask_ratio=0.3, label_dropout=0.5)
    ddpm.dataset, ddpm.tokens = flow.dataset, 16
    batches, others = (drawn(each, 4, range(8)) for each in (flow, ddpm))
    assert batches.keys() == others.keys() == {"plain", "masked"}
    for name, batch in batches.items():
        other = others[name]
        for field in ("x_0", "noise", "labels", "indices"):
            assert torch.equal(getattr(batch, field), getattr(other, field)), field
        assert name == "plain" or torch.equal(batch.keep, other.keep)


# What a student's config records


def flow_values(values, flow_teacher, **changes):
    """A tiny run of a DiT student."""
    student = {k: v for k, v in values["student"].items() if k != "decode_layer"} | {"name": "dit"}
    own = {"task": {"name": "flow_matching"}, "student": student, "teacher": str(flow_teacher)}
    return {**values, **own, "losses": [{"name": "output"}, {"name": "shd"}], **changes}


def test_a_run_records_its_convention_and_sampling_asks_by_it(values, flow_teacher, tmp_path):
    """In its config.yaml and in the student's config.json: the folder of the student alone is enough."""
    density = {"name": "uniform", "shift": 2.5}
    config, _ = run(
        flow_values(values, flow_teacher, steps=2, task={"name": "flow_matching", "timestep_density": density})
    )
    told = json.loads((config.run / "student" / "config.json").read_text())
    assert (told["prediction"], told["learn_sigma"]) == ("velocity_sit", False)
    card = (config.run / "student" / "README.md").read_text()
    assert "A velocity of rectified flow, velocity_sit: noise is at time 0, data are at 1" in card
    text = (config.run / "config.yaml").read_text()
    assert "prediction: velocity_sit" in text and "learn_sigma: false" in text
    alone = shutil.copytree(config.run / "student", tmp_path / "student")
    model = loading.load(alone)
    images = [sample(source, 3, steps=3, guidance=1.0)[0] for source in (alone, model)]
    np.testing.assert_array_equal(*images)
    assert of_model(make(SampleConfig, {"run": str(config.run)}), model).shift == 2.5
    assert of_model(make(SampleConfig, {"run": str(config.run / "student")}), model).shift == 2.5  # of that run
    assert of_model(make(SampleConfig, {"run": str(alone)}), model).shift == 2.5  # by training.json
    again, metrics = run(
        flow_values(values, flow_teacher, steps=3, task={"name": "flow_matching", "timestep_density": density})
    )
    assert again.run == config.run and [row["step"] for row in metrics] == [3]


def test_a_students_own_prediction_goes_before_the_tasks(values, flow_teacher, caplog):
    own = flow_values(values, flow_teacher, steps=1)
    own["student"] |= {"prediction": "velocity_repa", "learn_sigma": True}
    config, _ = run(own)
    told = json.loads((config.run / "student" / "config.json").read_text())
    assert (told["prediction"], told["learn_sigma"]) == ("velocity_repa", True)
    assert any("student.learn_sigma: half of its output is a variance" in line for line in caplog.messages)


# What is refused


FLOW, DIFFUSION = {"name": "flow_matching"}, {"name": "diffusion", "mask_ratio": None}


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            {**FLOW, "mask_ratio": 0.3},
            r"^task\.mask_ratio: the .* \(DiT\) has no masked pass; set task\.mask_ratio",
        ),
        (
            {**FLOW, "convention": "sit"},
            r"^task\.convention: wanted velocity_sit \| velocity_repa \| velocity_sd3, foun",
        ),
        (
            {**FLOW, "timestep_density": {"std": 0}},
            r"^task\.timestep_density\.std: wanted a number from 0\.001 to 20",
        ),
        ({**FLOW, "timestep_density": {"kind": "x"}}, r"^task\.timestep_density: unknown key 'kind'"),
        ({**FLOW, "label_dropout": 2}, r"^task\.label_dropout: wanted a number from 0 to 1, found 2"),
        (
            {**FLOW, "evaluation": {"sample": {"solver": "ddim"}}},
            r"^task\.evaluation: solver: ddim is for models that predict noise, and this one predicts velocity_sit",
        ),
    ],
)
def test_a_task_that_cannot_be_is_one_line(values, flow_teacher, task, message):
    refused(flow_values(values, flow_teacher, task=task, validate_every=1), message)


def test_a_teacher_of_noise_does_not_teach_velocity(values, teacher):
    message = r"teacher: predicts noise \(MDTv2\); wanted one whose config says that it predicts a velocity"
    refused(flow_values(values, teacher), message)


def test_a_model_of_noise_is_not_asked_for_velocity(shapes, teacher):
    """Also where nobody checked the model."""
    own = task(shapes)
    with pytest.raises(UserError, match=r"^model: predicts noise \(MDTv2\); wanted one whose config says"):
        own.predict(loading.load(teacher), drawn(own, 0, range(2))["plain"])


def test_models_of_velocity_do_not_learn_or_teach_diffusion(values, flow_teacher):
    noise = {**flow_values(values, flow_teacher), "task": DIFFUSION}
    refused(noise, r"velocity: predicts velocity_sd3 and not noise; wanted task\.name=flow_matching")
    noise["student"]["prediction"] = "velocity_sit"
    refused(
        {**noise, "teacher": None, "losses": []},
        r"^student: predicts velocity_sit and not noise; wanted task\.name=flow_matching",
    )


def test_a_noise_student_is_not_evaluated_by_a_solver_of_velocity(values):
    task = {**DIFFUSION, "evaluation": {"sample": {"solver": "heun"}}}
    message = r"^task\.evaluation: solver: heun is for models that predict velocities, and this one predicts noise"
    refused({**values, "task": task, "validate_every": 1}, message)


def test_a_student_begins_with_its_teachers_weights_in_its_convention_only(values, flow_teacher):
    own = flow_values(values, flow_teacher, steps=1, initialisation={"weights": "teacher"})
    refused(own, r"^initialisation: the student predicts velocity_sit and its teacher velocity_sd3: .*prediction=veloc")
    own["student"]["prediction"] = "velocity_sd3"
    _, (metrics,) = run(own)
    assert (
        metrics["plain/output"]
        < 0.5 * run({**own, "run": own["run"] + "2", "initialisation": {}})[1][0]["plain/output"]
    )


# A teacher of velocity is judged as one of noise is


SCHEDULE = Schedule.linear()


@cache
def digits_teacher():
    return loading.load("asset:digits_teacher").eval().requires_grad_(False)


class Velocity(nn.Module):
    """The digits' teacher of noise, turned into one of velocity: x of the path is x_t of DDPM times a number."""

    def __init__(self, prediction, asked=None):
        super().__init__()
        self.inner = digits_teacher()
        self.config = FrozenDict({**self.inner.config, "prediction": prediction})
        self.convention = CONVENTIONS[asked or prediction]

    def forward(self, x, time, class_labels, return_dict):
        c = self.convention
        sigma = (time / c.scale if c.noise_at == 1 else 1 - time / c.scale).double()
        target = torch.from_numpy(np.sqrt(1 / SCHEDULE.alphas_cumprod - 1))
        t = (target.log()[None] - (sigma / (1 - sigma)).clamp(1e-3).log()[:, None]).abs().argmin(1)
        kept = SCHEDULE.at(SCHEDULE.alphas_cumprod, t).sqrt()
        s = sigma.float()[:, None, None, None]
        noise = self.inner(x * kept / (1 - s), t, class_labels=class_labels, return_dict=False)[0][:, :1]
        x_0 = (x - s * noise) / (1 - s)
        return (c.velocity(noise - x_0),)


def measured(model):
    data = DATASETS.build(Plugin("digits"))
    return LabelTeacherCheck(Flow(), data, 0, torch.device("cpu")).measure(model)


def test_a_good_teacher_of_velocity_is_taken():
    found = measured(Velocity("velocity_sit"))
    assert found.fault() is None, found.summary()


@pytest.mark.parametrize(
    ("config", "truth"),
    [("velocity_sit", "velocity_repa"), ("velocity_repa", "velocity_sit"), ("velocity_sit", "velocity_sd3")],
)
def test_a_teacher_of_another_convention_than_its_config_says_is_found_out(config, truth):
    assert "another convention of velocity" in measured(Velocity(config, truth)).fault()


def test_attention_is_looked_at_on_the_path_and_at_the_models_time(flow_teacher, shapes):
    model, data = loading.load(flow_teacher), DATASETS.build(Plugin("npz", {"path": str(shapes)}))
    inputs = DatasetInputs(model, data, SCHEDULE, [range(3)], 0)
    at = {t: inputs.keywords(range(3), t) for t in (0, 250, 999)}
    assert at[250]["timestep"].tolist() == [250.0] * 3
    torch.testing.assert_close(at[0]["hidden_states"], inputs.x_0)
    noise = (at[999]["hidden_states"] - 0.001 * inputs.x_0) / 0.999
    torch.testing.assert_close(at[250]["hidden_states"], 0.75 * inputs.x_0 + 0.25 * noise, atol=1e-5, rtol=0)

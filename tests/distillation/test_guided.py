"""The guided target: the teacher's prediction under classifier-free guidance, of classes and of captions."""

import copy

import numpy as np
import pytest
import torch
from encoded_text import encode
from runs import drawn, run
from small_steps import SMALL, batch_of
from tiny_pipelines import write_pipeline

from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.data.datasets import DATASETS
from dit_shd.diffusion.adapters import adapter_of_model
from dit_shd.diffusion.guidance import Guidance, Guided
from dit_shd.diffusion.pipelines import Prompts
from dit_shd.diffusion.sample_config import SampleConfig
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses import LOSSES
from dit_shd.models import loading
from dit_shd.models.families.mdt import MDTv2
from dit_shd.tasks import TASKS, Output
from dit_shd.tasks.diffusion import Diffusion
from dit_shd.training import checks

NONE = SMALL["num_classes"]
"""The label for "no class"."""
TIMES, LABELS = (3, 800), (0, 2)


def model(seed=0, heads=2):
    torch.manual_seed(seed)
    built = MDTv2(**SMALL, num_attention_heads=heads)
    for p in built.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return built.double()


def loss_of(name="output", **options):
    return LOSSES.build(Plugin(name, options), "losses.0")


def built(name, **options):
    return TASKS.build(Plugin(name, options), "task")


def noisy(task):
    torch.manual_seed(3)
    return batch_of(torch.randn(2, 1, 8, 8), TIMES, LABELS)


def raw(network, batch, labels):
    """Noise and variance share of a model that is called by hand."""
    with torch.no_grad():
        return network(batch.x_t.double(), batch.t, class_labels=torch.tensor(labels), return_dict=False)[0].chunk(2, 1)


def counted(network):
    """The labels with which a model is called, in a list that goes on."""
    found = []
    network.register_forward_pre_hook(
        lambda _, args, kwargs: found.append(kwargs["class_labels"].tolist()), with_kwargs=True
    )
    return found


@pytest.mark.parametrize("scale", [0.0, 2.5, 7.0])
def test_the_target_is_u_plus_w_times_c_minus_u(scale):
    """Value and gradient, by calls of both models by hand."""
    student, teacher = model(), model(1, 4).eval()
    batch = noisy(Diffusion())
    asked = counted(teacher)
    distiller = Distiller(Diffusion(), student, [loss_of(guidance=scale)], base_weight=0.0)
    total, _ = distiller(batch, teacher)
    total.backward()
    assert asked == [list(LABELS), [NONE, NONE]]
    (c, _), (u, _) = raw(teacher, batch, LABELS), raw(teacher, batch, (NONE, NONE))
    twin = copy.deepcopy(student)
    noise = twin(batch.x_t.double(), batch.t, class_labels=torch.tensor(LABELS), return_dict=False)[0].chunk(2, 1)[0]
    want = (noise - ((1 - scale) * u + scale * c)).square().mean()
    twin.zero_grad()
    want.backward()
    torch.testing.assert_close(total.double(), want, rtol=1e-5, atol=0)
    for one, other in zip(student.parameters(), twin.parameters()):
        found, wanted = (torch.zeros_like(p) if p.grad is None else p.grad for p in (one, other))
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-6)


def test_the_variance_is_the_conditional_one_and_the_mean_the_guided_noises():
    """By torch's KL of normal distributions around means of DDPM's equations 7 and 15."""
    student, teacher = model(), model(1, 4).eval()
    batch = noisy(Diffusion())
    distiller = Distiller(Diffusion(), student, [loss_of(guidance=3.0, variance=True)])
    found = distiller(batch, teacher)[1]["output/variance"]
    betas = np.linspace(1e-4, 0.02, 1000)
    kept = np.cumprod(1 - betas)
    (c, v), (u, _), (s, own) = (
        raw(teacher, batch, LABELS),
        raw(teacher, batch, (NONE, NONE)),
        raw(student, batch, LABELS),
    )
    normals = []
    for noise, share in ((u + 3 * (c - u), v), (s, own)):
        mean, deviation = torch.zeros_like(noise), torch.zeros_like(noise)
        for i, t in enumerate(TIMES):
            mean[i] = (batch.x_t[i] - betas[t] / np.sqrt(1 - kept[t]) * noise[i]) / np.sqrt(1 - betas[t])
            low = np.log(betas[t] * (1 - kept[t - 1]) / (1 - kept[t]))
            f = (share[i] + 1) / 2
            deviation[i] = (0.5 * (f * np.log(betas[t]) + (1 - f) * low)).exp()
        normals.append(torch.distributions.Normal(mean, deviation))
    want = torch.distributions.kl_divergence(*normals).mean() / np.log(2)
    torch.testing.assert_close(found.double(), want, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["output", "lift"])
def test_scale_1_is_the_unguided_target(name):
    """To the bit, without a second call of the teacher; and a schedule that ends at 1 is."""
    student, teacher = model(), model(1, 4).eval()
    batch = noisy(Diffusion())
    asked = counted(teacher)
    values = []
    for options in ({}, {"guidance": 1.0}, {"guidance": {"scale": 1, "schedule": "power-cosine"}}):
        values.append(Distiller(Diffusion(), student, [loss_of(name, **options)])(batch, teacher)[0])
    assert torch.equal(values[0], values[1]) and torch.equal(values[0], values[2])
    assert asked == 3 * [list(LABELS)]
    guided = Distiller(Diffusion(), student, [loss_of(name, guidance=1.0 + 1e-7)])(batch, teacher)[0]
    torch.testing.assert_close(guided, values[0])
    assert len(asked) == 5


def test_losses_of_one_teacher_share_its_second_call():
    student, teacher = model(), model(1, 4).eval()
    asked = counted(teacher)
    losses = [
        loss_of(guidance=2.0),
        loss_of(guidance=5.0),
        loss_of("lift", fine=1.0, guidance=5.0),
        loss_of(),
        loss_of("shd"),
    ]
    logs = Distiller(Diffusion(), student, losses)(noisy(Diffusion()), teacher)[1]
    assert asked == [list(LABELS), list(LABELS), [NONE, NONE]]  # first for the order of its layers
    torch.testing.assert_close(logs["output#2"], logs["lift/coarse"] + logs["lift/fine"])
    assert len({float(logs[name]) for name in ("output", "output#2", "output#3")}) == 3


def test_of_several_teachers_each_is_guided():
    student, teachers = model(), {"a": model(1, 4).eval(), "b": model(2, 3).eval()}
    batch = noisy(Diffusion())
    loss = LOSSES.build(Plugin("output", {"teacher": ["a", "b"], "guidance": 3.0}), "losses.0")
    found = Distiller(Diffusion(), student, [loss])(batch, teachers)[1]["output"]
    targets = [3 * raw(t, batch, LABELS)[0] - 2 * raw(t, batch, (NONE, NONE))[0] for t in teachers.values()]
    want = (raw(student, batch, LABELS)[0] - sum(targets) / 2).square().mean()
    torch.testing.assert_close(found.double(), want, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "ramp", [{}, {"schedule": "power-cosine", "power": 0.7, "channels": 1}], ids=["constant", "ramp of one channel"]
)
@pytest.mark.parametrize("name", ["diffusion", "flow_matching"])
def test_the_target_is_what_the_sampler_predicts(name, ramp, shapes, teacher, flow_teacher):
    """At every time of a batch, one by one, through the sampler's own code."""
    network = loading.load(teacher if name == "diffusion" else flow_teacher).eval()
    task = built(name, mask_ratio=None)
    task.dataset = DATASETS.build(Plugin("npz", {"path": str(shapes)}))
    batch = drawn(task, 3, range(6))["plain"]
    guidance = Guidance.from_value({"scale": 4.5, **ramp}, "guidance")
    conditional, without = (task.predict(network, b) for b in (batch, task.unconditional(batch)))
    found = task.guided(conditional, without, batch, guidance).prediction
    config = SampleConfig(
        guidance=4.5, guidance_schedule=guidance.schedule, guidance_power=guidance.power, guidance_tolerance=0.0,
        guided_channels=guidance.channels,
    )  # fmt: skip
    for i, time in enumerate(batch.t.tolist()):
        sampled = Guided(network, batch.labels[i : i + 1], config)(batch.x_t[i : i + 1], time)
        torch.testing.assert_close(found[i], sampled[0, :1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, conditional.prediction)


@pytest.fixture(scope="module", params=["sd3", "pixart"])
def captioned(request, tmp_path_factory):
    """Task, teacher and prompts of a text-to-image pipeline: a flow, and a DDPM with a learned variance."""
    folder = tmp_path_factory.mktemp(request.param)
    pipeline = write_pipeline(request.param, folder / "pipeline")
    data = DATASETS.build(Plugin("text_latents", {"path": str(encode(folder, pipeline))}))
    teacher = loading.load(str(pipeline)).eval()
    task = built("text_to_image", text_dropout=0.0)
    task.use(data, teacher)
    return task, teacher, Prompts.load(str(pipeline), torch.device("cpu"), text_tokens=None, size=(16, 16))


def test_the_ramp_of_captions_is_1_at_the_noise_and_the_scale_at_the_data(captioned):
    """MDT's formula; t / 1000 of a DDPM, the share of noise of a flow."""
    task, _, _ = captioned
    (batch,) = drawn(task, 1, range(4), batch_size=4).values()
    shape = batch.x_t.shape if task.process.kind == "flow" else (len(batch.x_t), 8, *batch.x_t.shape[2:])
    c, u = (Output(*task.process.prediction(torch.randn(shape), batch.x_t, batch.t)) for _ in range(2))
    ramp = Guidance(4.5, "power-cosine", 0.7, None)
    share = batch.t.double() / (1 if task.process.kind == "flow" else 1000)
    weight = 1 + 3.5 * (1 - torch.cos(np.pi * (1 - share) ** 0.7)) / 2
    want = u.prediction + weight.view(-1, 1, 1, 1) * (c.prediction - u.prediction)
    torch.testing.assert_close(task.guided(c, u, batch, ramp).prediction.double(), want, rtol=1e-4, atol=1e-5)


def test_the_target_is_rescaled_as_the_pipeline_rescales_it(captioned, monkeypatch):
    """Lumina 2 keeps the norm of the conditional prediction in each row."""
    task, _, _ = captioned
    monkeypatch.setattr(task, "named_adapter", "lumina2")
    (batch,) = drawn(task, 1, range(4), batch_size=4).values()
    c, u = (Output(torch.randn_like(batch.x_t)) for _ in range(2))
    found = task.guided(c, u, batch, Guidance(4.5)).prediction
    want = task.process.prediction(c.prediction, batch.x_t, batch.t)[0]
    torch.testing.assert_close(found.norm(dim=-1), want.norm(dim=-1))


def test_captions_are_left_out_as_the_pipeline_leaves_them_out(captioned):
    """The target is u + w (c - u) of calls with the pipeline's own embeddings of the prompt and of ''."""
    task, teacher, prompts = captioned
    (batch,) = drawn(task, 1, range(2), batch_size=2).values()
    student = copy.deepcopy(teacher)
    found = Distiller(task, student, [loss_of(guidance=3.0)])(batch, teacher)[1]["output"]
    adapter, parts = adapter_of_model(teacher, None), []
    with torch.no_grad():
        empty = prompts([""])
        for i, index in enumerate(batch.indices.tolist()):
            one = [x[i : i + 1] for x in (batch.x_t, batch.t)]
            c, u = (
                adapter.predict(teacher, *one, text, None)[:, : batch.x_t.shape[1]]
                for text in (prompts([task.dataset.caption(index)]), empty)
            )
            parts.append((c.double() - u - 3 * (c.double() - u)).square().mean())  # the student is the teacher
    torch.testing.assert_close(found.double(), torch.stack(parts).mean(), rtol=1e-3, atol=1e-9)
    assert found > 0


def test_the_variance_of_a_captioned_model_is_the_conditional_one(captioned):
    task, teacher, _ = captioned
    (batch,) = drawn(task, 1, range(2), batch_size=2).values()
    with torch.no_grad():
        conditional, without = (task.predict(teacher, b) for b in (batch, task.unconditional(batch)))
    guided = task.guided(conditional, without, batch, Guidance(2.0))
    assert guided.extra.keys() == conditional.extra.keys()
    if guided.extra:
        assert torch.equal(guided.extra["variance"], conditional.extra["variance"])
        assert torch.equal(guided.extra["log_variance"], conditional.extra["log_variance"])
        torch.testing.assert_close(guided.extra["mean"], 2 * conditional.extra["mean"] - without.extra["mean"])


def test_a_run_is_the_same_resumed_and_is_not_resumed_with_another_scale(values):
    changes = {
        "losses": [{"name": "output", "guidance": {"scale": 2, "schedule": "power-cosine"}}],
        "base_weight": {0: 1.0, 2: 0.0},
        "checkpoint_every": 1,
    }
    config, whole = run(values, steps=3, **changes)
    assert config.losses[0].options["guidance"]["scale"] == 2
    two = values | {"run": str(config.run) + "2"}
    resumed = [*run(two, steps=2, **changes)[1], *run(two, steps=3, **changes)[1]]
    assert [x["loss"] for x in whole] == [x["loss"] for x in resumed]
    with pytest.raises(UserError, match=r"another config \(losses\.0\.guidance\."):
        run(two, steps=4, **{**changes, "losses": [{"name": "output", "guidance": 2.0}]})
    with pytest.raises(UserError, match=r"another config \(base_weight"):
        run(two, steps=4, **{**changes, "base_weight": 1.0})


def test_the_base_term_has_its_weight_by_step():
    student, teacher = model(), model(1, 4).eval()
    totals = {}
    for weight in (0.0, 1.0, {0: 0.0, 10: 1.0}):
        distiller = Distiller(Diffusion(), student, [loss_of()], base_weight=weight)
        batch = batch_of(torch.ones(2, 1, 8, 8), TIMES, LABELS, step=5)
        totals[str(weight)], logs = distiller(batch, teacher)
    torch.testing.assert_close(totals["0.0"], logs["output"])
    base = logs["noise"] + logs["variational"]
    torch.testing.assert_close(totals["1.0"], logs["output"] + base)
    torch.testing.assert_close(totals["{0: 0.0, 10: 1.0}"], logs["output"] + base / 2)


@pytest.mark.parametrize(
    ("guidance", "message"),
    [
        (-1.0, r"guidance\.scale: wanted 0 or more, found -1"),
        ("much", r"losses\.0\.guidance\.scale: wanted a number, found 'much'"),
        ({"scale": 2, "channels": 0}, r"guidance\.channels: wanted 1 or more, found 0"),
        ({"scale": 2, "ramp": "cosine"}, r"losses\.0\.guidance: unknown key 'ramp'"),
        ({"schedule": "constant"}, r"losses\.0\.guidance\.scale: a value is needed"),
        ({"scale": 2, "schedule": "linear"}, r"guidance\.schedule: wanted constant | power-cosine"),
    ],
)
def test_guidance_that_is_none_is_refused(guidance, message):
    with pytest.raises(UserError, match=message):
        loss_of(guidance=guidance)


@pytest.mark.parametrize("name", ["classification", "language_modeling"])
def test_a_task_without_a_condition_refuses_it(name):
    task = built(name)
    with pytest.raises(
        UserError, match=rf"losses\.0\.guidance: {name} has no .* diffusion, flow_matching, text_to_image"
    ):
        checks.guidance(name, task, [loss_of(guidance=2.0)])
    with pytest.raises(UserError, match="has no condition that could be left out"):
        task.unconditional(noisy(Diffusion()))

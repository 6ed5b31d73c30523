"""What a run takes, by count: against the naive oracles, torch's own counter, and real tensors."""

import json

import pytest
import torch
import transformers
from counted_steps import DIT, small, step
from language import LLAMA, causal_lm, lines
from packaging.version import Version
from runs import run
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformer_oracle import forward as naive

from dit_shd.attention.capture import Capture
from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.core.yaml_files import read_yaml
from dit_shd.data.datasets import DATASETS
from dit_shd.models.bfloat16 import in_bfloat16
from dit_shd.models.blocks import blocks
from dit_shd.models.families.dit import DiT
from dit_shd.models.families.timm import TimmModel
from dit_shd.models.lora import Lora, add_lora
from dit_shd.profiling import meta
from dit_shd.profiling.captures import captures_of
from dit_shd.profiling.estimate import hours, peaks
from dit_shd.profiling.flops import forward_operations, step_operations
from dit_shd.profiling.memory import held, step_memory
from dit_shd.squeezing.cost import layer_cost
from dit_shd.squeezing.divergence import attention_kl
from dit_shd.squeezing.plans import contiguous
from dit_shd.squeezing.squeeze import squeeze
from dit_shd.tasks.classification import Classification
from dit_shd.tasks.diffusion import Diffusion, NoisyBatch
from dit_shd.tasks.language_modeling import LanguageModeling
from dit_shd.training import optim
from dit_shd.training.config import TrainConfig
from dit_shd.training.dry_run import step_shape

PLAIN = Diffusion(mask_ratio=None)


@pytest.fixture
def config(values, tmp_path):
    """A tiny distillation, of whose data and teacher there is nothing."""
    changes = {"data": {"name": "npz", "path": "none.npz"}, "teacher": str(tmp_path / "none")}
    estimate = {"teacher": {**values["student"], "num_attention_heads": 4}}
    return make(TrainConfig, {**values, **changes, "estimate": estimate})


@pytest.mark.parametrize(("family", "kept"), [("mdt", None), ("mdt", 9), ("dit", None)])
def test_a_models_operations_are_the_naive_models(family, kept):
    """Forward: the same products. Backward: fused attention computes each layer's scores once more."""
    heads, n = 2, 16
    model = small() if family == "mdt" else DiT(**DIT, num_attention_heads=heads, attention_head_dim=8)
    keep = None if kept is None else torch.arange(kept)[None]
    fixed = {name for name, p in model.named_parameters() if not p.requires_grad}
    state = {k: v.double() if v.is_floating_point() else v for k, v in model.to_public().items()}
    for name, value in state.items():
        value.requires_grad_(value.is_floating_point() and name not in fixed)
    with FlopCounterMode(display=False) as counter:
        output = naive(state, torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.long), heads, keep)
        forward = counter.get_total_flops()
        output.sum().backward()
        backward = counter.get_total_flops() - forward
    ratio, name = (0.3 if family == "mdt" else None), "plain" if kept is None else "masked"
    assert forward_operations(model, Diffusion(mask_ratio=ratio), name) == forward
    found = step_operations(step(make(TrainConfig, {"mask_ratio": ratio}), 1), model)
    ours = found.passes[name]
    tokens = [n] * 4 if kept is None else [kept] * 2 + [n] * 3  # two encoder and two decoder blocks, one side block
    assert (ours.tokens, ours.forward) == (kept or n, forward)
    assert ours.backward - backward == sum(2 * m * m * heads * 8 for m in tokens)


@pytest.mark.parametrize(("size", "published"), [("S/2", 6.06), ("XL/2", 118.64)])
def test_the_counts_of_dits_paper(size, published):
    """arXiv 2212.09748, table 4: what it calls Gflops are multiply-adds."""
    flops = forward_operations(meta.build(Plugin("dit", {"size": size}), "model"), PLAIN)
    assert flops / 2e9 == pytest.approx(published, rel=0.002)


def test_operations_are_those_of_real_tensors():
    """The meta device is told the same as a CPU, the fused kernel of a foreign family included."""
    from diffusers import DiTTransformer2DModel

    options = dict(num_attention_heads=2, attention_head_dim=8, num_layers=2, in_channels=4, out_channels=8)
    model = DiTTransformer2DModel(**options, sample_size=8, norm_num_groups=1, num_embeds_ada_norm=3).eval()
    zeros = torch.zeros(1, dtype=torch.long)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # the counter knows its products
        model(torch.zeros(1, 4, 8, 8), zeros, class_labels=zeros)
    assert forward_operations(model, PLAIN) == counter.get_total_flops()
    assert [c.shape for c in captures_of(model, PLAIN).values()] == [(1, 2, 16, 16)] * 2


@pytest.mark.parametrize("name", ["cait_xxs24_224", "vit_base_patch16_siglip_224"])
def test_a_network_that_expands_a_parameter_is_counted_without_gradients(name):
    """CaiT's class token, the query of SigLIP's pooling: torch's counter asserts that such a view has a graph."""
    model = TimmModel(model=name, num_classes=3, img_size=32, options=dict(depth=1, embed_dim=24, num_heads=3)).eval()
    with torch.no_grad():
        counted = forward_operations(model, Classification())
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 32, 32))
    assert counted == counter.get_total_flops()


def captured(h, n, d, e, mixed=False, seed=0):
    r = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, h, n, d, generator=r) for _ in range(3))
    out = torch.randn(h, d, e, generator=r)
    return Capture(q, k, v, d**-0.5, out=out, mixed=torch.randn(2, h, n, d, generator=r) if mixed else None)


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("method", ["pairwise", "joint", "per_query", "constant", "hard"])
@pytest.mark.parametrize("heads", [(5, 2), (4, 4), (4, 3)])
def test_shds_operations_are_those_that_it_does(heads, method, mixed, keeps):
    (h, g), n = heads, 24
    chunk = 64.0 if keeps else 0.01
    teacher, student = captured(h, n, 8, 20, mixed), captured(g, n, 6, 12, seed=1)
    student.query.requires_grad_()
    with FlopCounterMode(display=False) as counter:
        merged = squeeze(teacher, g, method=method, chunk_mib=chunk, keep_maps=True)
        attention_kl(teacher, student, merged, chunk_mib=chunk).sum().backward()
    one = [Capture(c.query[:1], c.key[:1], c.value[:1], c.scale, out=c.out, mixed=c.mixed) for c in (teacher, student)]
    assert bool(merged.maps) == (keeps and method not in ("constant", "hard") and g < h)
    counted, done = (
        layer_cost(*one, contiguous(h, g), 2, method=method, chunk_mib=chunk).operations,
        counter.get_total_flops(),
    )
    assert counted <= done <= 1.006 * counted  # what is solved of k x k is in the counter


@pytest.mark.parametrize(("mixed", "units"), [(False, 66), (True, 54)])
def test_shd_takes_as_much_as_both_models_own_attention(mixed, units):
    """12 heads into 6, in n m d multiply-adds: alpha 36 (24, where the layer's output is at hand) and KL 30."""
    n, d = 4096, 64
    tensors = {c: [torch.empty(1, c, n, d, device="meta") for _ in range(4)] for c in (12, 6)}
    out = torch.empty(12, d, 768, device="meta")
    q, k, v, own = tensors[12]
    teacher = Capture(q, k, v, 1.0, out=out, mixed=own if mixed else None)
    found = layer_cost(teacher, Capture(*tensors[6][:3], 1.0), contiguous(12, 6), 1)
    assert found.operations / 2 / (n * n * d) == pytest.approx(units, rel=0.08)


def test_a_step_is_the_sum_of_its_parts(config):
    student, teacher = small(2, 4), small(4, 4)
    found = step_operations(step(config), student, teacher)
    plain, masked = found.passes["plain"], found.passes["masked"]
    assert plain.teacher == forward_operations(teacher, PLAIN)
    assert masked.teacher == forward_operations(teacher, Diffusion(), "masked")
    assert plain.losses["shd"] > 0 and masked.losses == {"output": 0}
    assert found.total == found.executed == plain.total + masked.total
    assert plain.total == plain.teacher + plain.forward + plain.backward + plain.losses["shd"]
    alone = step_operations(step(make(TrainConfig, {"losses": []})), student)
    assert alone.passes["plain"].total == plain.forward + plain.backward


def test_live_bytes():
    with meta.MemoryTracker() as live:
        a = torch.zeros(100, device="meta")
        b = a.view(10, 10) + 1  # the view is no memory of its own
        del a
        c = b * 2
        del b, c
    assert (live.peak, live.now) == (800, 0)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_activations_are_those_of_real_tensors(precision):
    """What a step of real tensors holds at most, under real autocast, is what was counted without memory."""
    model = small(2, 32)
    config = make(TrainConfig, {"precision": precision, "mask_ratio": None})
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    x, t = torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.long)
    task, batch = Diffusion(mask_ratio=None), NoisyBatch("plain", 0, t, x, x, x, t, t)
    with meta.MemoryTracker(model) as live:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            output = task.predict(model, batch)
            terms = task.losses(output, batch)
        torch.stack([value.mean() for value in terms.values()]).sum().backward()
    counted = step_memory(step(config, 4), model, None).parts["activations"]
    assert counted == pytest.approx(live.peak, rel=0.005 if precision == "no" else 0.05)


@pytest.mark.parametrize(("name", "states"), [("adan", 4), ("adamw", 2)])
def test_memory_by_count(config, name, states):
    student, teacher = small(2, 4), small(4, 4)
    values = {"optimizer": {"name": name}, "ema": [0.9, 0.99], "losses": [{"name": "output"}, {"name": "shd"}]}
    config = make(TrainConfig, {**values, "teacher_precision": "bf16"})
    found = step_memory(step(config, 3), student, teacher)
    weights = sum(p.numel() for p in student.parameters())
    optimizer = optim.build(make(optim.OptimizerConfig, {"name": name}), student.named_parameters())
    for p in student.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    real = sum(x.numel() for state in optimizer.state.values() for x in state.values() if x.ndim)
    parts = found.parts
    assert real == states * weights and abs(parts[f"optimizer's states ({name})"] - 4 * real) < 1000
    assert parts["gradients"] == 4 * weights and parts["weight averages (2)"] == 8 * weights
    buffers = 4 * student.code.numel()
    assert parts["student's weights"] == 4 * weights + buffers
    assert parts["teacher's weights"] == 2 * sum(p.numel() for p in teacher.parameters()) + buffers
    held = 4 * 4 * 2 * 16 * 8 * 3  # float32, layers, q and k, tokens, width, images
    assert parts["losses (gradients held, tiles)"] == held + 64 * 2**20 + 4 * 3 * 4 * 16 * 16
    assert found.total == sum(parts.values())
    of_pass = parts["activations"] + parts["losses (gradients held, tiles)"]
    assert found.divided(8, False) == pytest.approx(of_pass + found.gathered + (found.total - of_pass) / 8, abs=8)
    whole = found.divided(8, True) - found.divided(8, False)
    assert whole == pytest.approx(4 * weights * 7 / 8, abs=8) and found.replicated == found.total + 4 * weights


def test_adamw_copies_what_it_trains_after_the_passes():
    """On a GPU it takes all roots at once: where a pass adds less than that, the figure was too low."""
    student = small(2, 64)
    adan, adamw = (
        step_memory(step(make(TrainConfig, {"mask_ratio": None, "optimizer": {"name": name}}), 1), student, None)
        for name in ("adan", "adamw")
    )
    of_pass = adamw.parts["activations"] + adamw.parts["losses (gradients held, tiles)"]
    copies = 4 * sum(p.numel() for p in student.parameters())
    assert of_pass < copies and adamw.parts["optimizer's step, more than a pass adds"] == copies - of_pass
    assert adan.parts["optimizer's step, more than a pass adds"] == 0
    two_states_fewer = copies - of_pass - 2 * copies
    assert adamw.total - adan.total == pytest.approx(two_states_fewer, abs=2000)
    of_pass += adamw.gathered  # which a step no longer holds
    assert of_pass > copies and adamw.divided(2, False) == pytest.approx((adamw.total - copies) / 2 + of_pass, abs=8)


def test_memory_of_what_losses_read_where_blocks_run_again():
    student, teacher = small(2, 4), small(4, 4)
    values = {"losses": [{"name": "shd"}], "precision": "bf16"}
    plain, again = (
        step_memory(step(make(TrainConfig, {**values, "gradient_checkpointing": again}), 3), student, teacher).parts
        for again in (False, True)
    )
    kept = 2 * 4 * 3 * 16 * 8 * 3  # bytes, layers, q, k and v, tokens, width, images
    assert again["losses (gradients held, tiles)"] - plain["losses (gradients held, tiles)"] == kept


def test_memory_of_a_teacher_whose_class_keeps_parts_in_float32(config, monkeypatch):
    """As WanTransformer3DModel does."""
    student, teacher = small(2, 4), small(4, 4)
    monkeypatch.setattr(type(teacher), "_keep_in_fp32_modules", ["mlp"], raising=False)
    low = step_memory(step(make(TrainConfig, {"teacher_precision": "bf16"}), 3), student, teacher)
    halves, wide = held(small(4, 4).bfloat16()), held(in_bfloat16(teacher))
    assert low.parts["teacher's weights"] == wide > halves


def test_memory_of_large_models(config):
    """Adapters alone have gradients and averages; of an offloaded teacher two blocks are there."""
    student, teacher = small(2, 4), small(4, 4)
    plain = step_memory(step(config, 3), student, teacher)
    of_student = held(student) + max(held(block) for block in blocks(student))
    add_lora(student, Lora(rank=1))
    trained = 4 * sum(p.numel() for p in student.parameters() if p.requires_grad)
    found = step_memory(step(make(TrainConfig, {"teacher_offload": "blocks"}), 3), student, teacher).parts
    assert found["gradients"] == found["weight averages (1)"] == trained < plain.parts["gradients"] / 4
    outside = held(teacher) - sum(held(block) for block in blocks(teacher))
    assert found["teacher's weights"] == outside + 2 * max(held(block) for block in blocks(teacher))
    low = step_memory(step(make(TrainConfig, {"teacher_precision": "int8"}), 3), student, teacher)
    assert low.parts["teacher's weights"] < 0.5 * plain.parts["teacher's weights"]
    assert low.gathered == held(student) + max(held(block) for block in blocks(student))
    assert low.divided(10**9, False) >= low.parts["teacher's weights"] + low.gathered
    of_teacher = found["teacher's weights"] + max(held(block) for block in blocks(teacher))  # one more than offloaded
    assert plain.gathered == of_student + of_teacher


def test_hours():
    assert hours(312e12 * 3600 * 0.5, 312, 0.5) == pytest.approx(1.0)
    assert peaks("bf16") == {"A100": 312, "H100": 989}
    assert peaks("no", 90) == {"90 TFLOP/s": 90}


def test_the_trainer_tells_its_share_of_the_peak(values):
    config, _ = run(values, peak_tflops=0.001, steps=2)
    rows = [json.loads(line) for line in (config.run / "timing.jsonl").read_text().splitlines()]
    operations = step_operations(step(config), small(2, 4), small(4, 4)).total
    assert len(rows) == 2
    for row in rows:
        assert row["mfu"] * 1e9 == pytest.approx(row["images_per_second"] * operations, rel=0.01)


@pytest.mark.parametrize(
    ("config", "share"),
    [("dit_b2_alone", 0.85), pytest.param("language/babyllama_llama_teacher", 0.7, marks=pytest.mark.slow)],
)
def test_blocks_that_are_computed_again_are_counted_at_any_precision(root, config, share):
    """As many operations as the forward's but for what is outside of blocks (a quarter: Llama's vocabulary)."""
    values = read_yaml(root / "configs" / f"{config}.yaml")
    student = meta.build(Plugin.from_value(values["student"], "student"), "student")
    steps = [step_shape(make(TrainConfig, {**values, "gradient_checkpointing": again}), 8) for again in (False, True)]
    plain, again = (step_operations(step, student, None).passes["plain"] for step in steps)
    assert share * plain.forward < again.recomputed <= plain.forward and plain.recomputed == 0
    held = [step_memory(step, student, None).parts["activations"] for step in steps]
    assert held[1] < held[0] / 2


def test_experts_are_counted_as_those_that_a_token_is_given(tmp_path):
    """A mixture of two experts a token is a network of twice the width, and its router; counting it was a traceback."""
    task = LanguageModeling()
    task.use(DATASETS.build(Plugin("text", {"path": lines(tmp_path), "length": 16, "document": "line"})), None)
    one = causal_lm({**LLAMA, "intermediate_size": 48})
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    mixture = causal_lm({**LLAMA, "model_type": "mixtral", **experts})
    if Version(transformers.__version__) < Version("5"):  # its experts are called by which of them were chosen
        with pytest.raises(UserError, match="its forward reads values, so that it cannot be counted"):
            forward_operations(mixture, task)
        return
    router = LLAMA["num_hidden_layers"] * 16 * 2 * LLAMA["hidden_size"] * experts["num_local_experts"]
    assert forward_operations(mixture, task) == forward_operations(one, task) + router

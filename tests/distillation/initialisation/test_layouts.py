"""Students of fewer heads of LLaMA, GPT-2, ViT and what is written like them: their attention keeps heads elsewhere."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from language import causal_lm
from small_layouts import gpt2, lm
from widening import random, widened

from dit_shd.core.errors import UserError
from dit_shd.distillation.initialisation import regression
from dit_shd.distillation.initialisation.initialise import Initialisation, check, initialise, planned
from dit_shd.models.families.timm import TimmModel
from dit_shd.tasks.classification import Classification
from dit_shd.tasks.language_modeling import LanguageModeling

OPTIONS = Initialisation(weights="teacher")


def opt(heads=4, width=32):
    sizes = {"hidden_size": width, "word_embed_proj_dim": width, "ffn_dim": width * 2, "num_attention_heads": heads}
    sizes |= {"num_hidden_layers": 2, "max_position_embeddings": 32, "vocab_size": 64, "dropout": 0.0}
    return causal_lm({"model_type": "opt", "tie_word_embeddings": False, **sizes})


def vit(name, heads=4, width=32, **options):
    torch.manual_seed(0)
    options = {"embed_dim": width, "depth": 2, "num_heads": heads, **options}
    return TimmModel(model=name, num_classes=5, img_size=32, options=options).eval()


MODELS = {
    "llama": lambda **sizes: lm("llama", attention_bias=True, mlp_bias=True, **sizes),
    "mistral": lambda **sizes: lm("mistral", **sizes),
    "qwen2": lambda **sizes: lm("qwen2", **sizes),
    "qwen3": lambda **sizes: lm("qwen3", **sizes),
    "olmo2": lambda **sizes: lm("olmo2", **sizes),  # a norm over all heads
    "phi": lambda **sizes: lm("phi", **{"heads": 4, "keys": 4, **sizes}),  # its output map is dense
    "opt": lambda **sizes: opt(**sizes),  # out_proj
    "gpt2": lambda **sizes: gpt2(**{"heads": 4, **{k: v for k, v in sizes.items() if k != "keys"}}),
    "deit": lambda **sizes: vit("deit_tiny_patch16_224", **sizes),
    "rope": lambda **sizes: vit("vit_small_patch16_rope_224", **sizes),
    "deit3": lambda **sizes: vit("deit3_small_patch16_224", **sizes),
    "vit": lambda **sizes: vit("vit_tiny_patch16_224", qk_norm=True, scale_attn_norm=True, qkv_bias=False, **sizes),
}


def plain_norms(**sizes):
    """Its norms of queries and keys have no weights."""
    norm = partial(torch.nn.LayerNorm, elementwise_affine=False)
    return vit("vit_tiny_patch16_224", qk_norm=True, norm_layer=norm, **sizes)


GROUPED = ("llama", "mistral", "qwen2", "qwen3", "olmo2")
HALF = {name: {"heads": 4, "keys": 2} if name in GROUPED else {"heads": 2} for name in MODELS}
HALF["phi"] = {"heads": 2, "keys": 2}


def task_of(model):
    task = Classification() if isinstance(model, TimmModel) else LanguageModeling()
    task.example(model, 1, torch.device("cpu"))  # which sets how images are normalised
    return task


def batches_of(model, count=16):
    """Random images, or random tokens."""
    (batch,) = task_of(model).example(model, count, torch.device("cpu"))
    if isinstance(model, TimmModel):
        return [batch]
    tokens = torch.randint(0, 64, batch.tokens.shape, generator=torch.Generator().manual_seed(1))
    return [replace(batch, tokens=tokens)]


@torch.no_grad()
def output(model):
    (batch,) = batches_of(model)
    if isinstance(model, TimmModel):
        return model(batch.pixels)
    return model(input_ids=batch.tokens[:, :-1], use_cache=False).logits


def begun(student, teacher, calibrated=True):
    check(OPTIONS, [], student, teacher)
    return initialise(task_of(teacher), student, teacher, batches_of(teacher) if calibrated else [], OPTIONS)


@pytest.mark.parametrize("kind", MODELS)
def test_a_student_of_all_heads_and_all_width_is_its_teacher(kind):
    teacher, student = random(MODELS[kind](), 0), random(MODELS[kind](), 1)
    plan = begun(student, teacher)
    assert plan.heads == plan.channels == {}
    assert torch.equal(output(student), output(teacher))


@pytest.mark.parametrize("kind", MODELS)
def test_a_teacher_that_does_what_a_narrow_student_does_gives_it_back(kind):
    """The same function, so that the axes are right: whole heads with their keys, biases, norms, transposed weights."""
    student, wide = random(MODELS[kind](**HALF[kind], width=16), 1), MODELS[kind]()
    widened(student, wide)
    torch.testing.assert_close(output(wide), output(student), rtol=1e-4, atol=1e-4 * float(output(student).std()))
    other = random(MODELS[kind](**HALF[kind], width=16), 3)
    plan = begun(other, wide, calibrated=False)
    assert len(plan.heads) == 2 and len(plan.channels) == 3
    for name, x in other.state_dict().items():
        assert torch.equal(x, student.state_dict()[name]), name


@torch.no_grad()
def error(student, teacher):
    return float((output(student) - output(teacher)).square().sum() / output(teacher).square().sum())


@pytest.mark.parametrize(
    ("make", "half", "share"),
    [
        (lambda **sizes: random(lm("llama", **sizes), 0), {"heads": 4, "keys": 2}, 0.6),
        (lambda **sizes: gpt2(tie_word_embeddings=True, **sizes), {"heads": 2}, 0.75),  # by transposed maps alone
        (lambda **sizes: random(MODELS["deit"](**sizes), 0), {"heads": 2}, 0.1),
    ],
)
def test_refitted_maps_give_more_of_the_teachers_output(make, half, share):
    teacher, student = make(), make(**half, width=16)
    begun(student, teacher, calibrated=False)
    before = error(student, teacher)
    begun(student, teacher)
    assert error(student, teacher) < share * before


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_heads_that_are_there_twice_are_lost_without_a_loss(kind, monkeypatch):
    """At equal width: the twins' outputs are the same, and the map that reads them takes the one for both."""
    monkeypatch.setattr(regression, "RIDGE", 1e-9)
    monkeypatch.setattr(regression, "FEW", 0)
    teacher, student = random(lm(kind, 8, 8), 0), random(lm(kind, 4, 4), 1)
    for layer in teacher.network.model.layers:
        for part in ("q_proj", "k_proj", "v_proj"):
            weight = getattr(layer.self_attn, part).weight
            weight.copy_(weight.view(4, 2, 8, -1)[:, :1].expand(-1, 2, -1, -1).reshape(weight.shape))
    begun(student, teacher)
    torch.testing.assert_close(output(student), output(teacher), rtol=1e-3, atol=1e-3 * float(output(teacher).std()))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["gpt2", "deit"])
def test_merging_pairs_of_one_map_into_heads_of_twice_the_width_loses_nothing(kind, monkeypatch):
    """sum_i W_i^V W_i^O of a pair has the rank of the new head; at equal width of the stream."""
    monkeypatch.setattr(regression, "RIDGE", 1e-9)
    monkeypatch.setattr(regression, "FEW", 0)
    teacher, student = random(MODELS[kind](), 0), random(MODELS[kind](heads=2), 1)
    blocks = teacher.network.transformer.h if kind == "gpt2" else teacher.network.blocks
    for block in blocks:
        weight = block.attn.c_attn.weight.t() if kind == "gpt2" else block.attn.qkv.weight
        bias = block.attn.c_attn.bias if kind == "gpt2" else block.attn.qkv.bias
        for x in (weight, bias):
            pairs = x[:64].unflatten(0, (2, 2, 2, 8))  # queries and keys
            pairs[:, :, 1] = pairs[:, :, 0]
    options = replace(OPTIONS, heads="merge")
    check(options, [], student, teacher)
    plan = initialise(task_of(teacher), student, teacher, batches_of(teacher), options)
    assert [len(heads.groups) for heads in plan.heads.values()] == [2, 2] and not plan.channels
    assert error(student, teacher) < 1e-6


@pytest.mark.parametrize(("how", "heads"), [("merge", 2), ("pick", 4)])
def test_padding_is_none_of_what_heads_are_mixed_by(how, heads):
    """Of a narrower GPT-2, whose maps are transposed; with half the heads, or heads of half the width."""
    teacher, options = random(gpt2(), 0), replace(OPTIONS, heads=how)
    (batch,) = batches_of(teacher, 8)
    rows = (torch.arange(batch.tokens.shape[1] - 1) < torch.tensor([4, 6, 5, 3, 9, 8, 7, 4])[:, None]).float()
    weights = []
    for filling in (1, 5):
        tokens = batch.tokens.clone()
        tokens[:, 1:][rows == 0] = filling
        padded = replace(batch, tokens=tokens, query_weight=rows, target_weight=rows)
        student = random(gpt2(heads, 16), 1)
        initialise(task_of(teacher), student, teacher, [padded], options)
        weights.append(student.state_dict())
    for name, x in weights[0].items():
        torch.testing.assert_close(x, weights[1][name], rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_heads_of_queries_come_with_their_keys():
    """By an independent reading: 8 heads and 4 of keys into 4 and 2, at equal width."""
    teacher = random(lm("llama", attention_bias=True), 0)
    student = random(lm("llama", 4, 2, attention_bias=True), 1)
    for layer in teacher.network.model.layers:  # a large head and one that is next to nothing are less than two
        layer.self_attn.o_proj.weight.view(32, 8, 8)[:, :2] *= torch.tensor([1.2, 0.01])[:, None]
    plan = begun(student, teacher, calibrated=False)
    for i, layer in enumerate(student.network.model.layers):
        mine, other = layer.self_attn, teacher.network.model.layers[i].self_attn
        values = other.v_proj.weight.view(4, 8, 32)
        out = other.o_proj.weight.view(32, 8, 8)
        size = [float((out[:, h] @ values[h // 2]).square().sum()) for h in range(8)]
        keys = [max(pair, key=lambda k: size[2 * k] + size[2 * k + 1]) for pair in ((0, 1), (2, 3))]
        heads = [head for key in keys for head in (2 * key, 2 * key + 1)]
        assert keys[0] == 1 and size[0] > max(size[2:4])
        assert plan.heads[f"network.model.layers.{i}.self_attn"].picked() == heads
        for part, kept, count in (("q_proj", heads, 8), ("k_proj", keys, 4), ("v_proj", keys, 4)):
            old, new = getattr(other, part), getattr(mine, part)
            assert torch.equal(new.weight, old.weight.view(count, 8, 32)[kept].flatten(0, 1))
            assert torch.equal(new.bias, old.bias.view(count, 8)[kept].flatten())
        assert torch.equal(mine.o_proj.weight, out[:, heads].flatten(1))
        assert torch.equal(mine.o_proj.bias, other.o_proj.bias)


@torch.no_grad()
def test_the_heaviest_heads_of_transposed_and_fused_maps_are_picked():
    """Of each pair of GPT-2's and DeiT's heads the second, which alone writes anything; the first has large queries."""
    teacher, image = random(gpt2(), 0), random(MODELS["deit"](), 0)
    for block in teacher.network.transformer.h:
        block.attn.c_attn.weight[:, 64:].unflatten(1, (2, 2, 8))[:, :, 0] *= 1e-3
        block.attn.c_attn.weight[:, :32].unflatten(1, (2, 2, 8))[:, :, 0] *= 10
    for block in image.network.blocks:
        block.attn.qkv.weight[64:].view(2, 2, 8, 32)[:, 0] *= 1e-3
        block.attn.qkv.weight[:32].view(2, 2, 8, 32)[:, 0] *= 10
    for model, student in ((teacher, gpt2(2, 16)), (image, MODELS["deit"](heads=2, width=16))):
        assert [heads.picked() for heads in planned(OPTIONS, [], student, model).heads.values()] == [[1, 3]] * 2


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_head_that_is_the_embedding_stays_that(kind):
    """It is not refitted to what the last norm gives: the embedding would be another with it."""
    made = {"gpt2": gpt2, "llama": lambda heads=8, width=32, **c: lm("llama", heads, heads // 2, width, **c)}[kind]
    teacher = random(made(tie_word_embeddings=True), 0)
    student = made(2, 16, tie_word_embeddings=True)
    begun(student, teacher)
    table = student.network.get_input_embeddings().weight
    assert student.network.get_output_embeddings().weight is table
    assert torch.equal(table, teacher.network.get_input_embeddings().weight[:, ::2])


@pytest.mark.parametrize("kind", ["llama", "gpt2", "deit"])
def test_a_student_of_fewer_heads_learns(kind):
    teacher, student = random(MODELS[kind](), 0), MODELS[kind](**HALF[kind], width=16)
    begun(student, teacher)
    (batch,) = batches_of(teacher)
    target, losses = torch.randn(output(teacher).shape, generator=torch.Generator().manual_seed(3)), []
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    for _ in range(3):
        given = student(batch.pixels) if kind == "deit" else student(input_ids=batch.tokens[:, :-1]).logits
        losses.append((given - target).square().mean())
        optimizer.zero_grad()
        losses[-1].backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())
        optimizer.step()
    assert losses[2] < losses[0]


@pytest.mark.parametrize(
    ("teacher", "student", "match"),
    [
        (
            lambda: lm("llama"),
            lambda: lm("llama", 2, 1, 16, head_dim=16),
            r"self_attn are 16 wide in the student and 8 in the teacher; .* so that head_dim must be the same",
        ),
        (
            MODELS["vit"],
            lambda: MODELS["vit"](heads=4, width=16),
            r"4 wide in the student and 8 .* so that embed_dim / num_heads must be the same",
        ),
        (MODELS["rope"], lambda: MODELS["rope"](heads=2), r"num_heads of network\.blocks\.0\.attn is 2"),
        (plain_norms, lambda: plain_norms(heads=2), r"num_heads of network\.blocks\.0\.attn is 2 in the student and 4"),
        (
            lambda: gpt2(scale_attn_weights=False),
            lambda: gpt2(2, scale_attn_weights=False),
            r"is 2 in the student and 4 in the teacher: .* or fewer of the same width",
        ),
        (gpt2, lambda: gpt2(8), r"num_heads of network\.transformer\.h\.0\.attn is 8 .* merged, and not made up; give"),
        (lambda: lm("llama"), lambda: lm("llama", 4, 1), r"4 heads and 1 of keys in the student, and 8 heads and 4"),
        (
            lambda: lm("llama", 8, 8),
            lambda: lm("llama", 4, 2),
            r"4 heads and 2 of keys in the student, and 8 heads and 8",
        ),
        (lambda: lm("phi3"), lambda: lm("phi3", 4, 2), r"the class Phi3Attention, whose heads are not known here"),
        (lambda: lm("diffllama"), lambda: lm("diffllama", 4, 2), r"DiffLlama\w*Attention, .* known here \(lambda_q1\)"),
        (lambda: lm("cohere", use_qk_norm=True), lambda: lm("cohere", 4, 2, use_qk_norm=True), r"axis 0 of .*q_norm"),
        (
            lambda: vit("beit_base_patch16_224"),
            lambda: vit("beit_base_patch16_224", 2, 16),
            r"the class Attention, whose heads are not known here \(q_bias\)",
        ),
        (
            lambda: gpt2(n_positions=32),
            lambda: gpt2(2, 16, n_positions=16),
            r"axis 0 of network\.transformer\.wpe\.weight has 16 entries in the student and 32 in the teacher",
        ),
        (lambda: lm("llama"), lambda: gpt2(2, 16), r"wte\.weight .* and .* of the teacher nothing"),
    ],
)
def test_what_is_refused(teacher, student, match):
    with pytest.raises(UserError, match=match):
        check(OPTIONS, [], student(), teacher())

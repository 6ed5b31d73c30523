"""A narrower student from sub-tensors of its teacher, for every kind of pipeline that has an adapter."""

import pytest
import torch
from diffusers import Lumina2Transformer2DModel
from tiny_pipelines import KINDS
from widening import random, widened

from dit_shd.core.errors import UserError
from dit_shd.diffusion.adapters import adapter_of_model
from dit_shd.distillation.initialisation.axes import axes
from dit_shd.distillation.initialisation.heads import head_maps, white_moments
from dit_shd.distillation.initialisation.initialise import Initialisation, check, initialise
from dit_shd.distillation.initialisation.moments import HeadMoments
from dit_shd.distillation.initialisation.plan import Heads
from dit_shd.distillation.initialisation.selection import Selection
from dit_shd.distillation.losses.shd import SHD
from dit_shd.models.families.dit import DiT
from dit_shd.models.students import HEADS, smaller
from dit_shd.squeezing.squeezer import Squeezer
from dit_shd.tasks.text_to_image import TextToImage

OPTIONS = Initialisation(weights="teacher")
TASK = TextToImage(side=8, text_tokens=5)


@pytest.fixture(scope="module", params=KINDS)
def teacher(request):
    torch.manual_seed(0)
    model = KINDS[request.param]().transformer.eval()
    return random(model, 0)


def smaller_than(teacher, **changes):
    """A student of half the heads, where no changes are named."""
    sizes = dict(teacher.config)
    key = next(name for name in HEADS if name in sizes)
    half = {key: sizes[key] // 2, **({"dim": sizes["dim"] // 2} if "dim" in sizes else {})}
    student = type(teacher).from_config(smaller(sizes, changes or half)).eval()
    return random(student, 1)


@torch.no_grad()
def output(model):
    """On noise of 8 x 8 with five tokens of text, or as many as a class takes alone."""
    task = TextToImage(side=8, text_tokens=None if adapter_of_model(model).fixed_tokens else 5)
    (batch,) = task.example(model, 2, torch.device("cpu"))
    return task.predict(model, batch).prediction


def test_equal_sizes_give_a_copy(teacher):
    student = random(type(teacher).from_config(teacher.config), 1).eval()
    plan = initialise(TASK, student, teacher, [], OPTIONS)
    assert plan.heads == plan.channels == {}
    assert all(torch.equal(x, teacher.state_dict()[name]) for name, x in student.state_dict().items())
    assert torch.equal(output(student), output(teacher))


def test_a_teacher_that_does_what_a_narrow_student_does_gives_it_back(teacher):
    """The same function, so that the axes are right: copies of a space in their order, whole heads, gates."""
    student, wide = smaller_than(teacher), type(teacher).from_config(teacher.config).eval()
    if hasattr(teacher, "text_embedding_padding"):
        with pytest.raises(UserError, match="HunyuanDiTAttentionPool, whose heads are not known here"):
            initialise(None, student, wide, [], OPTIONS)
        return
    widened(student, wide)
    torch.testing.assert_close(output(wide), output(student), rtol=1e-4, atol=1e-4 * float(output(student).std()))
    other = random(smaller_than(teacher), 3)
    initialise(TASK, other, wide, [], OPTIONS)
    for name, x in other.state_dict().items():
        assert torch.equal(x, student.state_dict()[name]), name


def sd3(**changes):
    torch.manual_seed(0)
    model = KINDS["sd3"]().transformer
    return random(type(model).from_config({**model.config, **changes}), 0).eval()


def test_narrower_and_shallower():
    """By an independent reading of three tensors."""
    teacher = sd3(num_layers=4)
    student = smaller_than(teacher, num_attention_heads=2, num_layers=2)
    loss = SHD(plan={f"transformer_blocks.{i}.attn{j}": [[0, 3], [1, 2]] for i in (0, 1) for j in ("", "2")})
    check(OPTIONS, [loss], student, teacher)
    plan = initialise(TASK, student, teacher, [], OPTIONS, loss)
    assert plan.layers == {
        "transformer_blocks.0": "transformer_blocks.1",
        "transformer_blocks.1": "transformer_blocks.3",
    }
    old, new = teacher.state_dict(), student.state_dict()
    table = old["transformer_blocks.1.norm1.linear.weight"].unflatten(0, (-1, 32))[:, ::2, ::2]
    assert torch.equal(new["transformer_blocks.0.norm1.linear.weight"], table.flatten(0, 1))
    attention = "transformer_blocks.3.attn"
    picked = []
    for group in ((0, 3), (1, 2)):
        size = {
            i: sum(
                float(
                    (old[f"{attention}.to_out.0.weight"][:, rows(i)] @ old[f"{attention}.{v}.weight"][rows(i)])
                    .square()
                    .sum()
                )
                for v in ("to_v", "add_v_proj")
            )
            for i in group
        }
        picked.append(max(group, key=lambda i: size[i]))
    assert plan.heads["transformer_blocks.1.attn"].picked() == picked
    expected = torch.cat([old[f"{attention}.to_k.weight"][rows(i)] for i in picked])[:, ::2]
    assert torch.equal(new["transformer_blocks.1.attn.to_k.weight"], expected)
    lines = list(plan.lines())
    assert lines[1].startswith(f"transformer_blocks.1 from transformer_blocks.3; attn heads: {picked[0]} of 0+3, ")
    assert "stream: 16 of 32 channels" in lines
    check_ff(plan, old, new)


def rows(head, width=8):
    return slice(head * width, (head + 1) * width)


def check_ff(plan, old, new):
    """The hidden units that the plan names, the same in both maps of the MLP."""
    (kept,) = [plan.channels[name] for name in plan.channels if name == "transformer_blocks.1.ff.net.hidden"]
    first, second = (f"transformer_blocks.{{}}.ff.net.{i}.weight" for i in ("0.proj", "2"))
    assert torch.equal(new[first.format(1)], old[first.format(3)][kept][:, ::2])
    assert torch.equal(new[second.format(1)], old[second.format(3)][::2][:, kept])


@pytest.mark.parametrize(
    ("kind", "attention", "values", "keys"),
    [
        ("sd3", "transformer_blocks.0.attn", {"to_v": 0, "add_v_proj": 0}, {"to_k": 0, "add_k_proj": 0, "to_q": 0}),
        ("prx", "blocks.0.attention", {"img_qkv_proj": 2, "txt_kv_proj": 1}, {"img_qkv_proj": 1, "txt_kv_proj": 0}),
    ],
)
def test_the_heads_of_the_largest_values_are_kept_whatever_their_keys(kind, attention, values, keys):
    """Of each map to values alone; where it is fused, they are its last copy."""
    teacher = KINDS[kind]().transformer
    of = (f"{attention}.", f"{attention.replace('.0.', '.1.')}.")  # of the one that the first block comes from
    for part, copy in values.items():
        for large in (0, 1):
            random(teacher, 0)
            with torch.no_grad():
                for name, x in teacher.named_parameters():
                    module = name.rpartition(".")[0].removeprefix(of[0]).removeprefix(of[1])
                    if name.startswith(of) and name.endswith(".weight") and module == part:
                        x[32 * copy :][rows(large)] *= 30
                    if name.startswith(of) and name.endswith(".weight") and module in keys:
                        x[32 * keys[module] :][rows(1 - large)] *= 100
            plan = initialise(TASK, smaller_than(teacher), teacher, [], OPTIONS)
            assert plan.heads[attention].picked()[0] == large, part
    first = Initialisation(weights="teacher", channels="first")
    plan = initialise(TASK, smaller_than(teacher), teacher, [], first)
    assert plan.heads[attention].picked()[0] == 0, "as is asked"


def test_the_first_are_kept_where_that_is_asked():
    teacher = sd3()
    student = smaller_than(teacher)
    plan = initialise(TASK, student, teacher, [], Initialisation(weights="teacher", channels="first"))
    assert all(heads.picked() == [0, 2] for heads in plan.heads.values())
    assert plan.channels["transformer_blocks.0.ff.net.hidden"] == list(range(64))


@torch.no_grad()
def test_hidden_units_are_weighed_by_their_gates_too_wherever_they_stand():
    teacher = random(KINDS["flux2"]().transformer.eval(), 0)
    plan = initialise(TASK, smaller_than(teacher), teacher, [], OPTIONS)
    mlp, beside = teacher.transformer_blocks[0].ff, teacher.single_transformer_blocks[0].attn
    maps = {
        "transformer_blocks.0.ff": (mlp.linear_in.weight, mlp.linear_out.weight),
        "single_transformer_blocks.0.attn": (beside.to_qkv_mlp_proj.weight[3 * 32 :], beside.to_out.weight[:, 32:]),
    }
    for name, (into, out) in maps.items():  # of a single block they come after its heads
        heaviest = (into.square().sum(1).unflatten(0, (2, -1)).sum(0) * out.square().sum(0)).topk(48).indices
        assert plan.channels[f"{name}.hidden"] == sorted(heaviest.tolist())


def dit(heads):
    sizes = {"sample_size": 8, "patch_size": 2, "in_channels": 1, "num_classes": 3, "num_layers": 2}
    return random(DiT(**sizes, num_attention_heads=heads, attention_head_dim=4), 0)


@pytest.mark.parametrize("measured", [False, True])
def test_heads_are_mixed_by_their_moments_for_the_outputs_that_the_student_has(measured):
    """Of white inputs and in equal shares where nothing was measured."""
    teacher, moments, g = dit(4), HeadMoments(4), torch.Generator().manual_seed(0)
    for each in (moments.query, moments.key, moments.output):
        each.add(torch.randn(100, 16, generator=g) @ torch.randn(16, 16, generator=g))
    moments.weight = torch.tensor([3.0, 1.0, 0.5, 0.5]).double()
    layers, known = {"blocks.0": "blocks.1", "blocks.1": "blocks.1"}, {"blocks.0.attn": moments} if measured else {}
    selection = Selection(dit(2), teacher, layers, Squeezer(), merge=True, moments=known)
    attention = teacher.blocks[1].attn
    heads = Heads(((0, 1), (2, 3)), ((0.75, 0.25) if measured else (0.5, 0.5), (0.5, 0.5)))
    qkv = (p.detach().double() for p in (attention.qkv.weight, attention.qkv.bias))
    out = attention.proj.weight.detach().double()[::2].t()  # every other channel of the stream is kept
    wanted = head_maps(heads, moments.moments() if measured else white_moments(*qkv), out, 4, 4)
    torch.testing.assert_close(vars(selection.head_maps["blocks.0.attn"]), vars(wanted))


def test_channels_of_the_stream_are_evenly_spaced_whatever_their_share():
    kept = initialise(TASK, dit(4), dit(6), [], OPTIONS).channels["stream"]
    assert len(kept) == 16 and {b - a for a, b in zip(kept, [*kept[1:], 24])} == {1, 2}
    assert all(0 <= place * 24 / 16 - i < 1 for place, i in enumerate(kept))


def test_positions_that_a_class_computes_are_those_of_the_kept_channels():
    """PixArt's table of sines is of the student's own making; it has every other of the teacher's channels."""
    teacher = KINDS["pixart"]().transformer
    student = smaller_than(teacher)
    assert torch.equal(student.pos_embed.pos_embed, teacher.pos_embed.pos_embed[..., ::2])


class Layered(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.blocks = torch.nn.ModuleList([torch.nn.ModuleDict({"attn": torch.nn.MultiheadAttention(width, 2)})])


@pytest.mark.parametrize(
    ("student", "options", "match"),
    [
        (
            lambda t: sd3(attention_head_dim=4, caption_projection_dim=16),
            {},
            r"8 wide|4 wide.*attention_head_dim must be",
        ),
        (
            lambda t: smaller_than(t),
            {"heads": "merge"},
            r"heads are merged in MDTv2, DiT, GPT-2 and ViT .*; of .*heads=pick",
        ),
        (
            lambda t: sd3(pooled_projection_dim=12),
            {},
            r"axis 1 of time_text_embed\.text_embedder\.linear_1\.weight has 12",
        ),
        (
            lambda t: sd3(pos_embed_max_size=8),
            {},
            r"axis 1 of pos_embed\.pos_embed has 64 entries .* 256 in the teacher",
        ),
        (lambda t: sd3(num_attention_heads=8, caption_projection_dim=64), {}, "left out or merged, and not made up"),
        (lambda t: sd3(dual_attention_layers=()), {}, None),
    ],
)
def test_what_is_refused(student, options, match):
    teacher = sd3()
    values = Initialisation(weights="teacher", **options)
    if match is None:  # it has less of the teacher's, and the tensors that it has
        with pytest.raises(UserError, match=r"norm1\.linear\.weight"):
            check(values, [], student(teacher), teacher)
        return
    with pytest.raises(UserError, match=match):
        check(values, [], student(teacher), teacher)


def test_attention_that_is_not_known_is_refused():
    with pytest.raises(UserError, match="attention of the class MultiheadAttention, whose heads are not known"):
        axes(Layered(8), Layered(16), {"blocks.0": "blocks.0"})
    assert axes(Layered(8), Layered(8), {}).spaces == {}
    dits = [DiT(sample_size=8, num_layers=1, num_attention_heads=2, num_classes=n) for n in (3, 5)]
    with pytest.raises(UserError, match=r"axis 0 of y_embedder\.embedding_table\.weight has 4 entries"):
        axes(*dits, {})


def lumina(**sizes):
    tiny = dict(sample_size=16, num_layers=1, num_refiner_layers=1, multiple_of=8, cap_feat_dim=8)
    return Lumina2Transformer2DModel(**tiny, axes_dim_rope=(4, 2, 2), axes_lens=(32, 16, 16), **sizes)


@pytest.mark.parametrize(("heads", "keys", "taken"), [(6, 2, False), (8, 2, False), (6, 3, True), (4, 4, True)])
def test_heads_of_queries_stay_with_their_heads_of_keys(heads, keys, taken):
    """Refused before the run's folder is written; with as many heads and fewer of keys, queries read other keys."""
    with torch.device("meta"):
        teacher = lumina(hidden_size=64, num_attention_heads=8, num_kv_heads=4)
        student = lumina(hidden_size=8 * heads, num_attention_heads=heads, num_kv_heads=keys)
    if taken:
        check(OPTIONS, [], student, teacher)
        return
    wanted = rf"attn has {heads} heads and {keys} of keys in the student, and 8 heads and 4 of keys .* its 2 heads of q"
    with pytest.raises(UserError, match=wanted):
        check(OPTIONS, [], student, teacher)

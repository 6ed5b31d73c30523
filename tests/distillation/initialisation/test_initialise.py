"""A student from its teacher's weights: copies, a widened model given back, merged heads."""

import oracle
import pytest
import torch
from runs import diffusion, drawn
from small_students import build

from dit_shd.attention.recording.attach import capture
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.data.datasets import DATASETS
from dit_shd.diffusion.denoiser import Denoiser
from dit_shd.distillation.initialisation import regression
from dit_shd.distillation.initialisation.initialise import Initialisation, initialise
from dit_shd.distillation.losses.shd import SHD
from dit_shd.models.families import FAMILIES
from dit_shd.models.loading import load
from dit_shd.tasks.diffusion import Diffusion

NAMES = ("mdt", "dit")


@pytest.fixture(scope="module")
def batches(shapes):
    """Lists of plain (and for MDTv2 masked) batches of one size, by family."""
    data = DATASETS.build(Plugin("npz", {"path": str(shapes), "flip": True}))
    task = diffusion(data, label_dropout=0.3)
    steps = [drawn(task, step, range(30), seed=3, batch_size=30) for step in range(4)]
    return {"mdt": [b for d in steps for b in d.values()], "dit": [d["plain"] for d in steps]}


def output(model, batch):
    return Denoiser(model)(batch.x_t, batch.t, batch.labels, batch.keep)


@torch.no_grad()
def outputs(model, batches):
    return torch.cat([output(model, batch).flatten() for batch in batches])


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("heads", ["pick", "merge"])
@pytest.mark.parametrize("calibration", [0, 1])
def test_an_equal_student_is_a_copy_bit_for_bit(batches, family, heads, calibration):
    teacher, student = build(family), build(family, seed=1)
    plan = initialise(
        Diffusion(), student, teacher, batches[family][:calibration], Initialisation("teacher", heads=heads)
    )
    assert torch.equal(outputs(student, batches[family]), outputs(teacher, batches[family]))
    assert all(torch.equal(v, teacher.state_dict()[k]) for k, v in student.state_dict().items())
    assert plan.channels == {}
    assert all(source == block for block, source in plan.layers.items())


def test_weights_that_are_given_stand_for_the_rounded_ones_of_the_teacher():
    teacher, student, whole = build(), build(seed=1), build(seed=2).state_dict()
    initialise(Diffusion(), student, teacher, [], weights=whole)
    assert all(torch.equal(x, whole[name]) for name, x in student.state_dict().items())


def test_a_loss_on_the_last_layer_leaves_no_block_at_random(batches):
    """Its map is of one layer; the student begins by sections. As an option of its own it is refused."""
    teacher, student = build(num_layers=8, decode_layer=4), build(seed=1)
    plans = [initialise(Diffusion(), student, teacher, [], shd=SHD(layers=how)) for how in ("last", "sections")]
    assert plans[0].layers == plans[1].layers
    assert {name.rpartition(".")[0] for name in plans[0].layers} == {
        "en_inblocks",
        "en_outblocks",
        "de_blocks",
        "sideblocks",
    }
    with pytest.raises(UserError, match=r"initialisation\.layers: wanted sections, .* found last"):
        Initialisation("teacher", layers="last")


def twice(x, dim=0):
    return x.repeat_interleave(2, dim)


def widened(model, family):
    """The same function at twice the width, heads and hidden units: every channel is there twice, one after the other.

    LayerNorms do not see it; maps that read a channel twice have half the weight on it, of a hidden unit 0.99 on one.
    """
    config = {k: v for k, v in dict(model.config).items() if not k.startswith("_")}
    wide = FAMILIES.find(family)(**{**config, "num_attention_heads": 2 * config["num_attention_heads"]})
    state = {}

    def by_head(x, dim=0):
        return twice(x.unflatten(dim, (-1, config["attention_head_dim"])), dim).flatten(dim, dim + 1)

    for name, tensor in model.state_dict().items():
        kind, linear = name.rpartition(".")[2], name.rpartition(".")[0]
        if name in ("pos_embed", "decoder_pos_embed", "mask_token", "y_embedder.embedding_table.weight"):
            new = twice(tensor, -1)
        elif kind == "relative_position_bias_table":
            new = twice(tensor, 1)
        else:
            new = tensor
            if linear.endswith("qkv"):
                new = by_head(new)
            elif linear != "final_layer.linear":
                new = twice(new)
            if name.endswith("fc2.weight"):
                new = twice(new, 1) * torch.tensor([0.99, 0.01]).repeat(new.shape[1])
            elif kind == "weight" and not linear.startswith(("x_embedder", "t_embedder.mlp.0")):
                new = (by_head(new, 1) if linear.endswith("attn.proj") else twice(new, 1)) / 2
        state[name] = new
    wide.load_state_dict(state)
    return wide.eval()


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("heads", ["pick", "merge"])
def test_a_widened_model_gives_back_what_it_was_made_from(batches, family, heads, monkeypatch):
    """The law of widths: of twins one is kept, and nothing is lost. All parts, both passes."""
    monkeypatch.setattr(regression, "RIDGE", 1e-8)
    monkeypatch.setattr(regression, "FEW", 0)
    model = build(family)
    wide = widened(model, family)
    expected = outputs(model, batches[family])
    torch.testing.assert_close(outputs(wide, batches[family]), expected, rtol=1e-4, atol=1e-4)
    student = build(family, seed=1)
    plan = initialise(Diffusion(), student, wide, batches[family], Initialisation("teacher", heads=heads))
    assert all([i // 2 for i in kept] == [*range(len(kept))] for kept in plan.channels.values())
    torch.testing.assert_close(outputs(student, batches[family]), expected, rtol=2e-2, atol=2e-2)


def test_the_order_of_hidden_units_does_not_matter(batches):
    teacher = build(num_attention_heads=4)
    students = [build(seed=1), build(seed=1)]
    initialise(Diffusion(), students[0], teacher, batches["mdt"])
    hidden = torch.randperm(64)
    state = teacher.state_dict()
    for name, tensor in state.items():
        if "mlp.fc1" in name:
            state[name] = tensor[hidden]
        elif name.endswith("mlp.fc2.weight"):
            state[name] = tensor[:, hidden]
    shuffled = build(num_attention_heads=4)
    shuffled.load_state_dict(state)
    torch.testing.assert_close(
        outputs(shuffled, batches["mdt"]), outputs(teacher, batches["mdt"]), rtol=1e-3, atol=1e-3
    )
    initialise(Diffusion(), students[1], shuffled, batches["mdt"])
    ours, theirs = (outputs(student, batches["mdt"]) for student in students)
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("family", NAMES)
def test_merging_heads_that_look_alike_loses_nothing(batches, family):
    """Two heads of width 2d for four of width d with equal maps in pairs: sum_i W_i^V W_i^O has rank 2d, so it fits."""
    teacher = build(family, num_attention_heads=4)
    state = teacher.state_dict()
    for name, tensor in state.items():
        if "attn.qkv" in name:
            query, key, value = tensor.chunk(3)
            pairs = [x.unflatten(0, (2, 2, 4))[:, :1].expand(-1, 2, *[-1] * x.ndim).flatten(0, 2) for x in (query, key)]
            state[name] = torch.cat([*pairs, value])
        if name.endswith("bias_table"):
            state[name] = tensor[:, [0, 0, 2, 2]]
    teacher.load_state_dict(state)
    student = build(family, seed=1, attention_head_dim=8)
    initialise(Diffusion(), student, teacher, batches[family], Initialisation("teacher", heads="merge"))
    torch.testing.assert_close(
        outputs(student, batches[family]), outputs(teacher, batches[family]), rtol=2e-2, atol=2e-2
    )


def test_heads_are_merged_by_their_weights_in_the_squeeze(batches):
    """By the naive squeeze; of heads 0 and 1 the second writes more, of 2 and 3 the first, and is picked."""
    teacher = build("dit", num_attention_heads=4)
    for block in teacher.blocks:
        for head in (0, 3):
            block.attn.proj.weight.data[:, 4 * head : 4 * (head + 1)] *= 0.1
    some = batches["dit"][:2]
    with torch.no_grad():
        captured = []
        for batch in some:
            with capture(teacher) as layers:
                output(teacher, batch)
            captured.append(dict(layers))
    plans = {
        how: initialise(
            Diffusion(), build("dit", seed=1, num_layers=2), teacher, some, Initialisation("teacher", heads=how)
        )
        for how in ("pick", "merge")
    }
    assert any(source != block for block, source in plans["merge"].layers.items())
    constant = initialise(
        *(Diffusion(), build("dit", seed=1, num_layers=2), teacher, some),
        *(Initialisation("teacher", heads="merge"), SHD(method="constant")),
    )
    for block, source in plans["pick"].layers.items():
        weights = []
        for layers in captured:
            t = layers[f"{source}.attn"]
            values = oracle.head_outputs(t.value.double(), t.out.detach().double())
            maps = oracle.maps(t.query.double(), t.key.double(), t.scale)
            weights.append(oracle.merge_progressively(maps, values, ((0, 1), (2, 3)))[0].mean(0))
        mean = torch.stack(weights).mean(0)
        shares = torch.stack([mean[0, :2], mean[1, 2:]])
        assert (shares.amax(1) > 0.7).all()
        assert plans["pick"].heads[f"{block}.attn"].picked() == [1, 2]
        merged = torch.tensor(plans["merge"].heads[f"{block}.attn"].shares, dtype=torch.float64)
        torch.testing.assert_close(merged, shares, rtol=0, atol=1e-3)
        assert constant.heads[f"{block}.attn"].shares == ((0.5, 0.5),) * 2, "by the method of the loss"


@pytest.mark.parametrize("heads", ["pick", "merge"])
def test_features_beyond_the_rank_change_nothing_and_can_learn(batches, heads):
    """A student head wider than the heads it stands for: what is left over stays random where gradients need it."""
    teacher = build(num_attention_heads=4)
    student, other = (build(seed=seed, num_attention_heads=1, attention_head_dim=16) for seed in (1, 2))
    for each in (student, other):
        initialise(Diffusion(), each, teacher, [], Initialisation("teacher", heads=heads))
    torch.testing.assert_close(*(outputs(each, batches["mdt"][:2]) for each in (student, other)))
    initialise(Diffusion(), student, teacher, batches["mdt"], Initialisation("teacher", heads=heads))
    output(student, batches["mdt"][0]).square().mean().backward()
    parameters = {name: p for name, p in student.named_parameters() if "side" not in name}
    inputs = [p for name, p in parameters.items() if "attn.qkv.weight" in name]
    back = [p for name, p in parameters.items() if "attn.proj.weight" in name]
    assert len(inputs) == len(back) == 4
    assert all((x != 0).any(1).all() for p in inputs for x in (p[:16], p[32:]))
    assert all((p.grad != 0).any(0).all() for p in back)


@pytest.mark.parametrize("heads", ["pick", "merge"])
def test_heads_that_pass_nothing_on_can_learn(batches, heads):
    """Of a teacher with pruned heads, W^O = 0: the student's values had been 1e-154 times as large as they were."""
    teacher = build(num_attention_heads=4)
    for name, p in teacher.named_parameters():
        if name.endswith("attn.proj.weight"):
            p.data.zero_()
    student = build(seed=1, num_attention_heads=2, attention_head_dim=4)
    initialise(Diffusion(), student, teacher, batches["mdt"], Initialisation("teacher", heads=heads))
    output(student, batches["mdt"][0]).square().mean().backward()
    proj = [(name, p) for name, p in student.named_parameters() if "attn.proj.weight" in name and "side" not in name]
    assert all((p == 0).all() and (p.grad != 0).any(0).all() for _, p in proj)


def test_a_teacher_in_bfloat16_gives_nearly_the_same(batches):
    students = [build(seed=1), build(seed=1)]
    for student, dtype in zip(students, (torch.float32, torch.bfloat16)):
        initialise(Diffusion(), student, build(num_attention_heads=4).to(dtype), batches["mdt"])
    ours, theirs = (outputs(student, batches["mdt"]) for student in students)
    assert (ours - theirs).norm() < 0.1 * ours.norm()


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_quantised_teacher_gives_nearly_the_same(batches, tmp_path, precision):
    torch.manual_seed(0)
    teacher = build(num_attention_heads=4, attention_head_dim=8)
    for p in teacher.parameters():
        torch.nn.init.normal_(p, std=0.1)
    teacher.save_pretrained(tmp_path)
    students = [build(seed=1, attention_head_dim=8) for _ in range(2)]
    for student, how in zip(students, ("bf16", precision)):
        quantised = load(tmp_path, how).eval().requires_grad_(False)
        initialise(Diffusion(), student, quantised, batches["mdt"])
    whole, fewer = (outputs(student, batches["mdt"]) for student in students)
    assert (whole - fewer).norm() < 0.3 * whole.norm()


def test_layers_follow_the_loss_or_what_is_said(batches):
    teacher, student = build(num_layers=8, decode_layer=4), build(seed=1)
    few = batches["mdt"][:2]

    def layers(how=None, shd=None):
        return dict(initialise(Diffusion(), student, teacher, few, Initialisation("teacher", layers=how), shd).layers)

    sections = {"en_inblocks.0": "en_inblocks.1", "en_outblocks.0": "en_outblocks.1", "de_blocks.0": "de_blocks.1",
                "de_blocks.1": "de_blocks.3", "sideblocks.0": "sideblocks.0"}  # fmt: skip
    assert layers() == sections
    by_depth = {"en_inblocks.0": "en_inblocks.1", "en_outblocks.0": "en_outblocks.1", "de_blocks.0": "de_blocks.1"}
    assert layers("proportional") == {**sections, **by_depth}
    deeper = build(seed=1, num_layers=6)  # of its 6 layers the 2nd, 3rd, 4th, 6th, 7th and 8th of 8, where tensors fit
    plan = initialise(Diffusion(), deeper, teacher, [], shd=SHD(layers="proportional"))
    assert plan.layers == {
        "en_inblocks.0": "en_inblocks.1",
        "en_inblocks.1": "en_inblocks.1",
        "en_outblocks.0": "en_outblocks.1",
        "en_outblocks.1": "de_blocks.1",
        "de_blocks.0": "de_blocks.2",
        "de_blocks.1": "de_blocks.3",
        "sideblocks.0": "sideblocks.0",
    }
    named = SHD(layers={"de_blocks.0.attn": "de_blocks.0.attn"})
    assert layers(shd=named) == {**sections, "de_blocks.0": "de_blocks.0"}
    for given in ({"de_blocks.0.attn": "de_blocks.3.attn"}, {}):  # a block that a map leaves out is not left random
        before = student.en_inblocks[0].mlp.fc1.weight.clone()
        teacher.en_inblocks[1].mlp.fc1.weight.data.mul_(2)
        assert layers(given) == {**sections, **({"de_blocks.0": "de_blocks.3"} if given else {})}
        assert not torch.equal(student.en_inblocks[0].mlp.fc1.weight, before)


def test_a_foreign_teacher_is_refused():
    from diffusers import DiTTransformer2DModel

    foreign = DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=4, num_layers=1, sample_size=8)
    with pytest.raises(UserError, match="wanted models of one class, found a MDTv2 and a DiTTransformer2DModel"):
        initialise(Diffusion(), build(), foreign, [])
    with pytest.raises(UserError, match="wanted models of one class, found a DiT and a MDTv2"):
        initialise(Diffusion(), build("dit"), build("mdt"), [])

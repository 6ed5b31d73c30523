"""Plans of kept blocks: pairs of layers, files, students that begin with the weights of kept blocks."""

import pytest
import torch
from diffusers import DiTTransformer2DModel, SD3Transformer2DModel

from dit_shd.core.errors import UserError
from dit_shd.distillation.initialisation import depth
from dit_shd.distillation.initialisation.initialise import Initialisation, check, initialise
from dit_shd.distillation.kept import KeptPlan
from dit_shd.distillation.layer_map import layer_map
from dit_shd.distillation.losses.shd import SHD
from dit_shd.models.families.dit import DiT
from dit_shd.models.families.mdt import MDTv2
from dit_shd.tasks.diffusion import Diffusion

PLAN = KeptPlan(
    weights={"blocks.0": "blocks.0", "blocks.1": "blocks.1"},
    layers={"blocks.0": "blocks.0", "blocks.1": "blocks.3"},
    errors={"blocks.0": 0.0, "blocks.1": 0.25},
)


def renamed(name):
    return KeptPlan(
        *(
            {k.replace("blocks", name): v.replace("blocks", name) for k, v in x.items()}
            for x in (PLAN.weights, PLAN.layers)
        ),
        {k.replace("blocks", name): v for k, v in PLAN.errors.items()},
    )


def test_layers_in_kept_blocks_learn_from_the_last_block_they_stand_for(tmp_path):
    (tmp_path / "plan.json").write_text(PLAN.text())
    teacher = [f"blocks.{i}" for i in range(4)]
    assert layer_map(teacher, teacher[:2], f"kept:{tmp_path}") == {"blocks.0": "blocks.0", "blocks.1": "blocks.3"}
    attention = [f"{name}.attn" for name in teacher]
    found = layer_map(attention, attention[:2], f"kept:{tmp_path / 'plan.json'}")
    assert found == {"blocks.0.attn": "blocks.0.attn", "blocks.1.attn": "blocks.3.attn"}
    with pytest.raises(UserError, match=r"the teacher has no layer 'blocks.3.attn'"):
        layer_map(attention[:3], attention[:2], f"kept:{tmp_path}")
    with pytest.raises(UserError, match=r"the plan is of blocks.0, blocks.1; the student has x.0"):
        layer_map(attention, ["x.0"], f"kept:{tmp_path}")
    assert list(PLAN.lines())[1] == "blocks.1 from blocks.1, learns from blocks.3 (0.2500 unexplained)"


@pytest.mark.parametrize(
    "text",
    [
        *(None, "{", "[]", '{"weights": {}, "layers": {"a": "b"}, "errors": {}}', '{"weights": {}}'),
        '{"weights": {"a": "a"}, "layers": {"a": "b"}, "errors": {"a": "x"}}',
    ],
)
def test_what_is_no_plan_is_refused(text, tmp_path):
    if text is not None:
        (tmp_path / "plan.json").write_text(text)
    with pytest.raises(UserError, match="wanted a plan of dit-shd depth"):
        KeptPlan.read(tmp_path)


def randomised(model):
    torch.manual_seed(0)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model.eval()


TINY = dict(
    sample_size=8,
    patch_size=2,
    in_channels=1,
    num_classes=3,
    num_layers=4,
    num_attention_heads=2,
    attention_head_dim=4,
)


def dit():
    return randomised(DiT(**TINY))


def diffusers_dit():
    return randomised(
        DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=4, in_channels=1, num_layers=4, sample_size=8, norm_num_groups=1
        )
    )


def sd3():
    return randomised(
        SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=1, num_layers=4, attention_head_dim=4, num_attention_heads=2,
            joint_attention_dim=8, caption_projection_dim=8, pooled_projection_dim=8, out_channels=1,
            pos_embed_max_size=8,
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("build", "name"), [(dit, "blocks"), (diffusers_dit, "transformer_blocks"), (sd3, "transformer_blocks")]
)
def test_a_student_of_kept_blocks_has_their_weights_and_all_outside_of_blocks(build, name):
    teacher, plan = build(), renamed(name)
    student = depth.student_of(teacher, plan)
    assert type(student) is type(teacher) and student.config.num_layers == 2
    own, other = student.state_dict(), teacher.state_dict()
    last = "3" if build is sd3 else "1"  # SD3's last block has other tensors: it comes from the one that fits
    for key, tensor in own.items():
        assert torch.equal(tensor, other[key.replace(f"{name}.1.", f"{name}.{last}.")]), key


def test_a_plan_that_keeps_all_gives_the_same_model():
    teacher = dit()
    names = [f"blocks.{i}" for i in range(4)]
    student = depth.student_of(
        teacher, KeptPlan(dict(zip(names, names)), dict(zip(names, names)), dict.fromkeys(names, 0.0))
    )
    x, t, labels = torch.randn(2, 1, 8, 8), torch.tensor([3, 4]), torch.tensor([0, 1])
    assert torch.equal(*(model(x, t, labels, return_dict=False)[0] for model in (student, teacher)))


def test_what_does_not_fit_is_refused():
    wider = DiT(**{**TINY, "num_layers": 2, "attention_head_dim": 8})
    with pytest.raises(UserError, match=r"has other tensors than blocks\.0 of the teacher"):
        depth.pairs(wider, dit(), PLAN)
    shallow = depth.student_of(dit(), PLAN)
    with pytest.raises(UserError, match=r"the teacher has no block blocks\.3"):
        depth.pairs(shallow, shallow, PLAN)


@pytest.mark.parametrize("by", ["option", "loss"])
def test_a_student_begins_with_the_blocks_that_a_plan_keeps(by, tmp_path):
    """Where the loss alone names it, too: it learns from the last block of an interval, and begins with the first."""
    (tmp_path / "plan.json").write_text(PLAN.text())
    sizes = dict(sample_size=8, patch_size=2, in_channels=1, num_classes=3, num_attention_heads=2, attention_head_dim=4)
    teacher, student = randomised(DiT(**sizes, num_layers=4)), DiT(**sizes, num_layers=2)
    layers = f"kept:{tmp_path}"
    options = Initialisation("teacher", layers=layers if by == "option" else None)
    plan = initialise(Diffusion(), student, teacher, [], options, SHD(layers=layers))
    assert plan.layers == PLAN.weights
    assert torch.equal(student.blocks[1].mlp.fc1.weight, teacher.blocks[1].mlp.fc1.weight)
    narrow = DiT(**{**sizes, "num_attention_heads": 1}, num_layers=2)
    if by == "loss":  # fewer heads, too
        assert initialise(Diffusion(), narrow, teacher, [], options, SHD(layers=layers)).layers == PLAN.weights


def test_layers_in_lists_outside_of_the_plan_learn_from_those_of_their_names():
    """A plan of FLUX's single blocks left the double ones without a loss."""
    single, double = renamed("single_transformer_blocks"), [f"transformer_blocks.{i}.attn" for i in range(2)]
    names = [f"single_transformer_blocks.{i}.attn" for i in range(4)]
    found = single.pairs([*double, *names], [*double, "context.0.attn", *names[:2]])
    assert found == {**{name: name for name in double}, names[0]: names[0], names[1]: names[3]}
    with pytest.raises(UserError, match=r"the plan is of single_transformer_blocks\.0, "):
        single.pairs([*double, *names], double)


def test_a_plan_is_of_a_student_of_as_many_blocks(tmp_path):
    """In the lists that it names; a block may be without layers where its teacher is, too."""
    names = [f"blocks.{i}" for i in range(4)]
    for count in (1, 3):
        with pytest.raises(UserError, match=f"kept: the plan is of a student of 2 blocks, this one has {count}"):
            depth.pairs(DiT(**{**TINY, "num_layers": count}), dit(), PLAN)
        with pytest.raises(UserError, match=f"this one has {count}"):
            PLAN.pairs(names, names[:count])
    assert PLAN.pairs(names[:3], names[:1]) == {"blocks.0": "blocks.0"}


def test_a_dit_of_kept_blocks_is_checked_and_narrowed_as_any_other(tmp_path):
    (tmp_path / "plan.json").write_text(PLAN.text())
    options = Initialisation("teacher", layers=f"kept:{tmp_path}")
    teacher, sizes = dit(), {**TINY, "num_layers": 2}
    velocities = [DiT(**{**sizes, "learn_sigma": False}, prediction="velocity_sit"),
                  DiT(**{**TINY, "learn_sigma": False}, prediction="velocity_repa")]  # fmt: skip
    refused = [
        (velocities[0], velocities[1], "predicts velocity_sit and its teacher velocity_repa"),
        (DiT(**{**sizes, "num_classes": 2}), teacher, r"axis 0 of y_embedder\.embedding_table\.weight has 3 entries"),
        (
            DiT(**{**sizes, "learn_sigma": False}),
            teacher,
            r"final_layer\.linear\.weight has 4 entries .* latent channels must be as many",
        ),
        (DiT(**{**sizes, "num_layers": 3}), teacher, "of a student of 2 blocks, this one has 3"),
    ]
    for student, source, message in refused:
        with pytest.raises(UserError, match=message):
            check(options, [], student, source)
    student = DiT(**{**sizes, "num_attention_heads": 1, "attention_head_dim": 8})
    plan = initialise(Diffusion(), student, teacher, [], options)
    assert plan.layers == PLAN.weights
    assert [heads.groups for heads in plan.heads.values()] == [((0, 1),)] * 2


def test_lists_outside_of_the_plan_begin_with_the_teachers_blocks(tmp_path):
    names = [f"de_blocks.{i}" for i in range(2)]
    plan = KeptPlan({names[0]: names[1]}, {names[0]: names[1]}, {})
    (tmp_path / "plan.json").write_text(plan.text())
    teacher, student = (randomised(MDTv2(**{**TINY, "num_layers": n}, decode_layer=n - 2)) for n in (4, 3))
    layers = initialise(Diffusion(), student, teacher, [], Initialisation("teacher", layers=f"kept:{tmp_path}")).layers
    assert layers == {x: x for x in ("en_inblocks.0", "en_outblocks.0", "sideblocks.0")} | {names[0]: names[1]}

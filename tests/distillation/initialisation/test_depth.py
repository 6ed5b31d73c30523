import pytest
import torch
import zoo
from diffusers import SD3Transformer2DModel
from language import GPT_NEOX
from tiny_pipelines import KINDS

from dit_shd.analysis.redundancy import plan_of
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.distillation.initialisation import depth
from dit_shd.distillation.initialisation.initialise import Initialisation, check, initialise, planned, remarks
from dit_shd.distillation.kept import KeptPlan
from dit_shd.distillation.losses.shd import SHD
from dit_shd.models.families import FAMILIES
from dit_shd.models.families.timm import TimmModel
from dit_shd.models.families.transformers import CausalLM
from dit_shd.models.students import smaller

SIZES = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 6,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "caption_projection_dim": 16,
    "joint_attention_dim": 8,
    "pooled_projection_dim": 8,
    "pos_embed_max_size": 8,
    "dual_attention_layers": [0, 1, 2],
}
OPTIONS = Initialisation(weights="teacher")


def test_blocks_are_copied_and_the_last_is_the_last():
    torch.manual_seed(0)
    teacher = SD3Transformer2DModel(**SIZES)
    student = SD3Transformer2DModel(**smaller(SIZES, {"num_layers": 3}))
    check(OPTIONS, [], student, teacher)
    plan = initialise(None, student, teacher, [], OPTIONS)
    assert list(plan.layers.values()) == [f"transformer_blocks.{i}" for i in (1, 3, 5)]
    for name, tensor in student.state_dict().items():
        block = next((b for b in plan.layers if name.startswith(f"{b}.")), None)
        source = name if block is None else name.replace(block, plan.layers[block])
        assert torch.equal(tensor, teacher.state_dict()[source]), name
    assert next(iter(plan.lines())) == "transformer_blocks.0 from transformer_blocks.1"
    same = SD3Transformer2DModel(**SIZES)
    initialise(None, same, teacher, [], OPTIONS)
    assert all(torch.equal(a, b) for a, b in zip(same.state_dict().values(), teacher.state_dict().values()))


def test_blocks_follow_the_layers_that_the_shd_loss_names():
    """`layers` left out is "as the shd loss has it"; blocks that it leaves out go by section."""
    teacher = SD3Transformer2DModel(**SIZES)
    student = SD3Transformer2DModel(**smaller(SIZES, {"num_layers": 3}))
    block = "transformer_blocks.{}".format
    loss = SHD(layers={f"{block(0)}.attn": f"{block(0)}.attn", f"{block(2)}.attn": f"{block(4)}.attn"})
    layers = planned(OPTIONS, [loss], student, teacher).layers
    assert layers == {block(0): block(0), block(1): block(3), block(2): block(5)}  # only the last gives no text
    named = Initialisation(weights="teacher", layers="sections")
    assert planned(named, [loss], student, teacher).layers[block(0)] == block(1)
    two = {f"{block(0)}.attn": f"{block(2)}.attn", f"{block(0)}.attn2": f"{block(1)}.attn2"}
    assert planned(OPTIONS, [SHD(layers=two)], student, teacher).layers[block(0)] == block(2), "the first of a block"


def test_blocks_that_the_option_leaves_out_go_by_section():
    """They came from the teacher's block of the same number, and the plan was of the named ones alone."""
    teacher = SD3Transformer2DModel(**SIZES)
    student = SD3Transformer2DModel(**smaller(SIZES, {"num_layers": 3}))
    block = "transformer_blocks.{}".format
    options = Initialisation(weights="teacher", layers={block(0): block(2)})
    plan = initialise(None, student, teacher, [], options)
    assert plan.layers == {block(0): block(2), block(1): block(3), block(2): block(5)}
    first, second = (student.transformer_blocks[i].attn.to_q.weight for i in range(2))
    assert torch.equal(first, teacher.transformer_blocks[2].attn.to_q.weight)
    assert torch.equal(second, teacher.transformer_blocks[3].attn.to_q.weight)


def test_two_classes_are_refused():
    with pytest.raises(UserError, match="wanted models of one class"):
        check(OPTIONS, [], torch.nn.Linear(2, 2), SD3Transformer2DModel(**SIZES))


def test_a_copy_is_of_equal_widths():
    teacher = SD3Transformer2DModel(**SIZES)
    student = SD3Transformer2DModel(**smaller(SIZES, {"num_attention_heads": 1}))
    with pytest.raises(UserError, match=r"has shape .* in the student, .* use initialisation.weights=random"):
        depth.copy(student, teacher, depth.pairs(student, teacher, None))


def test_a_plan_of_kept_blocks_and_fewer_heads():
    teacher = SD3Transformer2DModel(**SIZES)
    student = SD3Transformer2DModel(
        **smaller(SIZES, {"num_attention_heads": 1, "num_layers": 2, "dual_attention_layers": [0]})
    )
    blocks = [f"transformer_blocks.{i}" for i in range(6)]
    plan = KeptPlan(dict(zip(blocks, (blocks[1], blocks[3]))), dict(zip(blocks, (blocks[2], blocks[5]))), {})
    assert depth.pairs(student, teacher, plan) == {blocks[0]: blocks[1], blocks[1]: blocks[5]}


@pytest.mark.parametrize(
    ("starts", "dual"), [((0, 2, 4), [0, 1]), ((0, 3, 4, 5), [0]), ((0, 1, 2), [0, 1]), ((0, 1, 2, 3, 4, 5), [0, 1, 2])]
)
def test_a_student_of_kept_blocks_has_two_attentions_where_their_teachers_have(starts, dual):
    """SD3.5-medium: no student could be written."""
    teacher = SD3Transformer2DModel(**SIZES)
    names = [f"transformer_blocks.{i}" for i in range(6)]
    intervals = list(zip(starts, (*starts[1:], 6)))
    student = depth.student_of(teacher, plan_of(names, intervals, [0.0] * len(starts)))
    assert student.config.dual_attention_layers == dual
    for number, source in enumerate((*starts[:-1], 5)):  # the last alone gives no text
        taken, taught = (m.transformer_blocks[i].state_dict() for m, i in ((student, number), (teacher, source)))
        assert taken.keys() == taught.keys() and all(torch.equal(x, taught[name]) for name, x in taken.items())


def test_weights_of_the_same_shapes_and_other_heads_are_refused():
    """They were copied as they are, into other maps; of any class."""
    teacher = SD3Transformer2DModel(**SIZES)
    student = SD3Transformer2DModel(**{**SIZES, "num_attention_heads": 1, "attention_head_dim": 16, "num_layers": 6})
    with pytest.raises(
        UserError, match=r"heads of transformer_blocks\.0\.attn is 1 in the student and 2 in the teacher"
    ):
        check(OPTIONS, [], student, teacher)
    with pytest.raises(UserError, match="heads of"):
        depth.copy(student, teacher, depth.pairs(student, teacher, None))
    llama = dict(model_type="llama", hidden_size=32, intermediate_size=32, vocab_size=9)
    models = [
        CausalLM(config={**llama, "num_attention_heads": n, "num_key_value_heads": n, "num_hidden_layers": depth_})
        for n, depth_ in ((2, 1), (4, 2))
    ]
    with pytest.raises(UserError, match=r"head_dim of .* is 16 in the student and 8 in the teacher"):
        check(OPTIONS, [], *models)
    models = [CausalLM(config={**GPT_NEOX, "num_attention_heads": n}) for n in (2, 4)]
    with pytest.raises(UserError, match=r"head_size of .* is 8 in the student and 4 in the teacher"):
        check(OPTIONS, [], *models)


def test_blocks_inside_of_stages_are_evenly_spaced():
    """Of Swin's third stage they had been the teacher's first."""

    def swin(depth, seed):
        torch.manual_seed(seed)
        sizes = {"embed_dim": 8, "depths": (1, 1, depth, 1), "num_heads": (1, 2, 4, 8), "window_size": 7}
        return TimmModel(model="swin_tiny_patch4_window7_224", img_size=56, num_classes=10, options=sizes)

    teacher, student = swin(6, 0), swin(2, 1)
    plan = initialise(None, student, teacher, [], OPTIONS)
    stage = "network.layers.2"
    inner = {name: source for name, source in plan.layers.items() if name.startswith(f"{stage}.")}
    assert inner == {f"{stage}.blocks.0": f"{stage}.blocks.2", f"{stage}.blocks.1": f"{stage}.blocks.5"}
    taken, given = student.state_dict(), teacher.state_dict()
    for name, source in {**inner, "network.layers.1": "network.layers.1"}.items():
        for key in taken:
            if key.startswith(f"{name}."):
                assert torch.equal(taken[key], given[source + key.removeprefix(name)])


def test_what_a_block_s_number_makes_is_told_of():
    """Chroma's modulation is computed from the number of each block, of which a student has others."""
    teacher = KINDS["chroma"]().transformer
    student, same = (
        type(teacher).from_config({**teacher.config, "num_single_layers": depth, "num_attention_heads": heads})
        for depth, heads in ((1, 4), (2, 2))
    )
    (line,) = remarks(OPTIONS, [], student, teacher)
    assert "time_text_embed.mod_proj has 17 rows in the student and 20 in its teacher, by the numbers of blocks" in line
    assert not list(remarks(OPTIONS, [], same, teacher))


def test_a_table_of_positions_is_not_taken_for_one_of_blocks():
    """Of images of half the side there are fewer rows, whatever the number of blocks is."""
    teacher, student = (
        FAMILIES.build(Plugin("timm", {"model": "vit_small_patch16_rope_224", **options}), "student")
        for options in ({"options": {"depth": 2}}, {"options": {"depth": 1}, "img_size": 112})
    )
    assert len(dict(teacher.named_buffers())["network.rope.pos_embed"]) == 196
    assert not any("numbers of" in line for line in remarks(OPTIONS, [], student, teacher))


def test_lists_that_one_key_cuts_are_not_cut_otherwise_than_the_plan():
    """Two of Flux3's three had kept other blocks than the one that the plan names, without a word."""
    name = "Flux3Transformer2DModel"
    if name not in zoo.classes():
        pytest.skip(f"this diffusers has no {name}")
    base, names = zoo.build(name), [f"mode_blocks.image.{i}" for i in range(4)]
    teacher = type(base).from_config({**base.config, "num_layers": 4})
    plan = KeptPlan(dict(zip(names, names[::2])), dict(zip(names, names[1::2])), dict.fromkeys(names[:2], 0.1))
    with pytest.raises(UserError, match=r"has as many blocks as mode_blocks\.image, by one key of its config"):
        depth.student_of(teacher, plan)

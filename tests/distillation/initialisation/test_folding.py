"""DeiT from DeiT III: the paper's student has neither the scales of its teacher's branches nor the same positions."""

import pytest
import torch
from widening import random

from dit_shd.core.errors import UserError
from dit_shd.distillation.initialisation.folding import folded
from dit_shd.distillation.initialisation.initialise import Initialisation, check, initialise, remarks
from dit_shd.models.families.timm import TimmModel
from dit_shd.tasks.classification import Classification

OPTIONS = Initialisation(weights="teacher")


def vit(name, heads=4, width=32, **options):
    sizes = {"embed_dim": width, "depth": 2, "num_heads": heads, **options}
    return TimmModel(model=name, num_classes=5, img_size=32, options=sizes).eval()


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"no_embed_class": True}, {"init_values": 1.0}])
def test_a_deit_of_all_heads_does_what_its_deit_iii_does(options):
    teacher, student = random(vit("deit3_small_patch16_224"), 0), random(vit("deit_tiny_patch16_224", **options), 1)
    before = {name: x.clone() for name, x in teacher.state_dict().items()}
    check(OPTIONS, [], student, teacher)
    task = Classification()
    (batch,) = task.example(teacher, 4, torch.device("cpu"))
    initialise(task, student, teacher, [batch], OPTIONS)
    wanted = teacher(batch.pixels)
    torch.testing.assert_close(student(batch.pixels), wanted, rtol=1e-4, atol=1e-4 * float(wanted.std()))
    assert all(torch.equal(x, before[name]) for name, x in teacher.state_dict().items())


@torch.no_grad()
def test_the_papers_student_begins_with_half_the_heads():
    teacher, student = random(vit("deit3_small_patch16_224"), 0), vit("deit_tiny_patch16_224", 2, 16)
    plan = initialise(Classification(), student, teacher, [], OPTIONS)
    assert [len(heads.groups) for heads in plan.heads.values()] == [2, 2]
    old, new = teacher.network, student.network
    assert torch.equal(new.pos_embed[:, 1:], old.pos_embed[..., ::2]) and not new.pos_embed[:, 0].any()
    scaled = old.blocks[0].ls2.gamma[::2] * old.blocks[0].mlp.fc2.bias[::2]
    assert torch.equal(new.blocks[0].mlp.fc2.bias, scaled)


def test_what_has_no_part_in_the_student_is_said():
    """A bias is not folded into anything; a scale is, and blocks that are left out give nothing."""
    student = vit("deit_tiny_patch16_224", 2, 16, qkv_bias=False)
    (line,) = remarks(OPTIONS, [], student, vit("deit3_small_patch16_224", depth=4))
    assert line.startswith("the student has no part for 2 of its teacher's tensors, and begins without")
    assert line.endswith("(first network.blocks.1.attn.qkv.bias)")
    assert not list(remarks(OPTIONS, [], vit("deit_tiny_patch16_224", 2, 16), vit("deit3_small_patch16_224")))


def test_a_teacher_of_the_same_parts_is_left_as_it_is():
    teacher = vit("deit3_small_patch16_224")
    assert folded(vit("deit3_small_patch16_224", 2, 16), teacher).keys() == teacher.state_dict().keys()
    with pytest.raises(UserError, match=r"ls1\.gamma .* and .* of the teacher nothing"):
        check(OPTIONS, [], vit("deit3_small_patch16_224"), vit("deit_tiny_patch16_224", no_embed_class=True))

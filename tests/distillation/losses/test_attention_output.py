"""attention_output against its definition, and what it reads of real models."""

import loss_checks as checks
import pytest
import torch
from small_steps import SMALL, batch_of

from dit_shd.core.errors import UserError
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses.attention_output import AttentionOutput
from dit_shd.models.families.mdt import MDTv2
from dit_shd.tasks.diffusion import Diffusion


def test_value_and_gradients_are_the_definition():
    s, t = checks.tokens(4, grad=True), checks.tokens(6, seed=1)
    loss = checks.build("attention_output", s, t)
    p = dict(loss.named_parameters())

    def oracle():
        outputs = [
            s[n] @ p[f"projectors.{n.replace('.', '_')}.weight"].T + p[f"projectors.{n.replace('.', '_')}.bias"]
            for n in s
        ]
        return sum((x - y).square().mean((1, 2)) for x, y in zip(outputs, t.values()))

    checks.same(loss, s, t, oracle)


def test_it_compares_what_attention_modules_give():
    """Of MDTv2: by hooks of the test's own, in the first call and when layers stream."""
    torch.manual_seed(0)
    teacher, student = MDTv2(**SMALL, num_attention_heads=4), MDTv2(**SMALL, num_attention_heads=2)
    for p in [*teacher.parameters(), *student.parameters()]:
        torch.nn.init.normal_(p, std=0.2)
    loss, batch = AttentionOutput(), batch_of(torch.randn(2, 1, 8, 8), [3, 800], [0, 1])
    distiller = Distiller(Diffusion(), student, [loss])
    distiller.build([batch], teacher)
    seen = {}
    for role, model in (("s", student), ("t", teacher)):
        for name, module in model.named_modules():
            if name.endswith(".attn"):
                key = (role, name)
                module.register_forward_hook(lambda _m, _a, output, key=key: seen.__setitem__(key, output.detach()))
    for _ in range(2):
        seen.clear()
        _, logs = distiller(batch, teacher)
        names = [name for role, name in seen if role == "s"]
        assert len(names) == 4
        want = sum(
            (loss.projectors[name.replace(".", "_")](seen["s", name]) - seen["t", name]).square().mean()
            for name in names
        )
        torch.testing.assert_close(logs["attention_output"], want.detach())


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"attention_output\.projector: none wants equal widths, found 4 and 6"):
        checks.build("attention_output", checks.tokens(4), checks.tokens(6), projector="none")

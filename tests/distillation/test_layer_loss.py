"""Losses of layers: hidden states, taught pair by pair while the teacher runs."""

import pytest
import torch
from small_steps import SMALL, Says, batch_of

from dit_shd import SHD
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses import LOSSES, Forward, Layer, LayerLoss, Reads, Term
from dit_shd.distillation.losses.output import Output
from dit_shd.models.families.mdt import MDTv2
from dit_shd.tasks.diffusion import Diffusion


class Hints(LayerLoss):
    """The student's blocks give what the teacher's give, up to a linear map (FitNets, arXiv 1412.6550)."""

    reads = frozenset({Reads.HIDDEN})

    def __init__(self, layers="sections", passes=("plain",)):
        super().__init__(1.0, passes, layers)
        torch.manual_seed(2)
        self.projector = torch.nn.Linear(8, 16)

    def pair(self, student, teacher, batch):
        return Term((self.projector(student.hidden) - teacher.hidden).square().flatten(1).mean(1))


DEEP = {**SMALL, "num_layers": 8, "decode_layer": 4, "num_attention_heads": 4}


LEARNS_FROM = {
    "en_inblocks.0": "en_inblocks.1",
    "en_outblocks.0": "en_outblocks.1",
    "de_blocks.0": "de_blocks.1",
    "de_blocks.1": "de_blocks.3",
}
"""Sections, by hand."""


RUNS = [
    f"{section}.{i}"
    for section, count in (("en_inblocks", 2), ("en_outblocks", 2), ("de_blocks", 4))
    for i in range(count)
]
"""The teacher's blocks as a plain pass runs them."""


@pytest.fixture
def pair():
    """A teacher of twice the depth and width, whose gradient nobody has switched off, and a student."""
    torch.manual_seed(0)
    teacher, student = MDTv2(**DEEP).eval(), MDTv2(**SMALL, num_attention_heads=2)
    for p in [*teacher.parameters(), *student.parameters()]:
        torch.nn.init.normal_(p, std=0.2)
    return teacher, student


def hidden_batch():
    torch.manual_seed(1)
    return batch_of(torch.randn(2, 1, 8, 8), [3, 800], [0, 1])


def hidden_by_hand(model, batch):
    """What each block gives, by hooks of our own."""
    found = {}
    handles = [
        module.register_forward_hook(lambda _, args, output, name=name: found.setdefault(name, output))
        for name, module in model.named_modules()
        if name.rpartition(".")[0] in ("en_inblocks", "en_outblocks", "de_blocks")
    ]
    model(batch.x_t, batch.t, batch.labels, return_dict=False)
    for handle in handles:
        handle.remove()
    return found


def test_hidden_states_are_taught_pair_by_pair(pair):
    """Value and gradients are those of an independent computation, in the first call and in later ones."""
    teacher, student = pair
    loss, batch = Hints(), hidden_batch()
    distiller = Distiller(Diffusion(), student, [loss])
    ours, theirs = hidden_by_hand(student, batch), hidden_by_hand(teacher, batch)
    errors = [
        (ours[one] @ loss.projector.weight.T + loss.projector.bias - theirs[other]).square().mean()
        for one, other in LEARNS_FROM.items()
    ]
    want = torch.stack(errors).sum()
    learning = {name: p for name, p in distiller.named_parameters() if "side" not in name}
    gradients = torch.autograd.grad(want, list(learning.values()), allow_unused=True)
    reached = {name: grad for name, grad in zip(learning, gradients) if grad is not None}
    assert {"losses.0.projector.weight", "student.en_inblocks.0.mlp.fc1.weight", "student.pos_embed"} < reached.keys()
    for _ in range(3):
        terms, logs = distiller.terms(batch, teacher)
        torch.testing.assert_close(logs["test_layer_loss"], want.detach())
        found = torch.autograd.grad(terms["test_layer_loss"], list(learning.values()), allow_unused=True)
        for name, gradient in zip(learning, found):
            assert (gradient is None) == (name not in reached), name
            if gradient is not None:
                torch.testing.assert_close(gradient, reached[name], rtol=1e-4, atol=1e-6)
    assert not any(module._forward_hooks for model in pair for module in model.modules())


def test_hidden_states_are_settled_as_the_teacher_runs(pair):
    """Each pair right after its teacher's block, and no output of a block is held; a forward shows the order first."""
    import weakref

    teacher, student = pair
    events, alive, outputs = [], [], []

    class Told(Hints):
        def pair(self, student, teacher, batch):
            assert (student.attention, teacher.attention) == (None, None)
            assert not teacher.hidden.requires_grad
            events.append((student.name, teacher.name))
            return super().pair(student, teacher, batch)

    def ran(name, output):
        events.append(name)
        if name.startswith("de_blocks"):  # the others are the model's own skips
            alive.append(sum(ref() is not None for ref in outputs))
            outputs.append(weakref.ref(output))

    for name in RUNS:
        teacher.get_submodule(name).register_forward_hook(lambda *given, name=name: ran(name, given[-1]))
    distiller = Distiller(Diffusion(), student, [Told(), Output()])
    pairs = list(LEARNS_FROM.items())
    settled = [x for name in RUNS for x in (name, *[p for p in pairs if p[1] == name])]
    for want in ([*RUNS, *settled], settled):
        events.clear(), alive.clear(), outputs.clear()
        distiller(hidden_batch(), teacher)[0].backward()
        assert events == want
        assert max(alive) == 1  # the one before is the block's input
    assert all(p.grad is None for p in teacher.parameters())


def test_the_teacher_stops_after_the_last_hidden_state_that_is_needed(pair):
    teacher, student = pair
    batch, ran = hidden_batch(), []
    for name in RUNS:
        teacher.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    before = Diffusion().predict(teacher, batch).prediction
    distiller = Distiller(Diffusion(), student, [Hints({"en_inblocks.0": "en_outblocks.1"})])
    found = []
    for want in ([*RUNS, *RUNS[:4]], RUNS[:4]):
        ran.clear()
        found.append(distiller(batch, teacher)[1]["test_layer_loss"])
        assert ran == want
    assert torch.equal(*found)
    assert torch.equal(Diffusion().predict(teacher, batch).prediction, before)


def test_what_a_loss_learns_begins_as_the_seed_says(pair):
    teacher, student = pair

    def weights(seed):
        distiller = Distiller(Diffusion(), student, [LOSSES.build(Plugin("feature", {}))])
        distiller.build([hidden_batch()], teacher, seed)
        return torch.cat([p.detach().flatten() for p in distiller.losses.parameters()])

    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(0), weights(1))


def test_losses_of_attention_of_hidden_states_and_of_outputs_together(pair):
    """Each term is what it is alone, streamed or not, and the total is their sum."""
    teacher, student = pair
    batch, task = hidden_batch(), Diffusion()
    alone = [Distiller(task, student, [loss])(batch, teacher)[1] for loss in (Hints(), SHD(), Output())]
    together = Distiller(task, student, [Hints(), SHD(weight=0.5), Output()])
    for _ in range(2):
        total, logs = together(batch, teacher)
        for name, single in zip(("test_layer_loss", "shd", "output"), alone):
            assert torch.equal(logs[name], single[name])
        parts = (logs["noise"], logs["variational"], logs["test_layer_loss"], 0.5 * logs["shd"], logs["output"])
        torch.testing.assert_close(total.detach(), sum(parts))


def test_recomputed_blocks_give_the_same_hidden_states(pair):
    teacher, student = pair
    found = []
    for recompute in (False, True):
        if recompute:
            student.enable_gradient_checkpointing()
        distiller = Distiller(Diffusion(), student.train(), [Hints()])
        for _ in range(2):
            student.zero_grad()
            total, _ = distiller(hidden_batch(), teacher)
            total.backward()
        found.append((total.detach(), student.en_inblocks[0].mlp.fc1.weight.grad.clone()))
    for plain, again in zip(*found):
        torch.testing.assert_close(plain, again, rtol=1e-5, atol=1e-7)


def test_a_model_without_blocks_has_no_hidden_states():
    distiller = Distiller(Diffusion(), Says(torch.zeros(2, 2, 8, 8)), [Hints()])
    with pytest.raises(UserError, match="Says: has no list of blocks whose outputs could be read"):
        distiller(hidden_batch(), Says(torch.zeros(2, 2, 8, 8)))


@pytest.mark.parametrize(
    ("reads", "found"),
    [((Reads.ATTENTION, Reads.HIDDEN), "attention, hidden"), ((Reads.OUTPUT,), "output"), ((), "nothing")],
)
def test_a_loss_of_layers_reads_one_kind_of_them(reads, found):
    """Blocks and attention layers have other names, so no map pairs both at once."""

    class Both(Hints):
        pass

    Both.reads = frozenset(reads)
    with pytest.raises(
        UserError, match=f"Both: reads: wanted one of attention, attention output and hidden, found {found}$"
    ):
        Both()


VALUES = {"b.0": [1.0, 3, 5, 9], "b.1": [10.0, 20], "b.2": [0.0, 0]}
"""By layer."""


class Given(LayerLoss):
    """Values by layer, and whether gradients were wanted."""

    def pair(self, student, teacher, batch):
        value = torch.tensor(VALUES[student.name])
        logs = {"size": torch.tensor(len(value)), "with a graph": torch.tensor(torch.is_grad_enabled())}
        return Term(value, {name: log.float() for name, log in logs.items()})


def test_values_of_parts_are_those_of_their_samples_and_logs_are_means():
    """The first layer has two frames of each sample, one after the other."""
    layers = {name: Layer(name) for name in VALUES}
    for wanted in (True, False):
        with torch.set_grad_enabled(wanted):
            pairs = Given().begin(list(layers), layers, None)
        for layer in layers.values():
            assert pairs.incomplete
            with torch.no_grad():  # in which the teacher runs
                pairs(layer)
        assert not pairs.incomplete
        term = pairs.term()
        assert term.value.tolist() == [2.0 + 10, 7.0 + 20]
        assert term.logs["size"] == pytest.approx(8 / 3) and term.logs["with a graph"] == wanted


def test_a_teacher_s_layer_may_teach_several():
    layers = {name: Layer(name) for name in VALUES}
    pairs = Given(layers={"b.0": "b.0", "b.1": "b.0", "b.2": "b.1"}).begin(list(layers), layers, None)
    pairs(layers["b.0"])
    assert pairs.incomplete
    pairs(layers["b.1"])
    assert not pairs.incomplete and pairs.term().value.tolist() == [12, 27]


def test_projectors_that_are_there_are_left_alone():
    """A pass after the other is built, and a run that is resumed has its projectors before."""

    class Projected(Given):
        def make_projector(self, student, teacher):
            return torch.nn.Linear(2, 2)

    loss, layers = Projected(), {name: Layer(name) for name in VALUES}
    forward = Forward(torch.zeros(2), {}, attention=layers)
    loss.build(forward, forward, hidden_batch())
    first = dict(loss.projectors)
    loss.build(forward, forward, hidden_batch())
    assert len(first) == 3 and all(loss.projectors[key] is projector for key, projector in first.items())

from dataclasses import replace

import pytest
import torch
from tiny_pipelines import KINDS

from dit_shd.distillation.initialisation import refit
from dit_shd.distillation.initialisation.initialise import Initialisation, initialise
from dit_shd.distillation.initialisation.selection import Selection
from dit_shd.models.blocks import named_blocks
from dit_shd.models.students import smaller
from dit_shd.squeezing.squeezer import Squeezer
from dit_shd.tasks.text_to_image import TextToImage

OPTIONS = Initialisation(weights="teacher")
TASK = TextToImage(side=8, text_tokens=5)


def models(kind):
    torch.manual_seed(0)
    teacher = KINDS[kind]().transformer.eval()
    for p in teacher.parameters():
        torch.nn.init.normal_(p, std=0.2)
    key = "n_heads" if kind == "z_image" else "num_attention_heads"
    return teacher, type(teacher).from_config(smaller(dict(teacher.config), {key: 2})).eval()


@torch.no_grad()
def error(student, teacher, batches):
    pairs = [[TASK.predict(model, batch).prediction for model in (student, teacher)] for batch in batches]
    return float(sum((a - b).square().sum() for a, b in pairs) / sum(b.square().sum() for _, b in pairs))


@pytest.mark.parametrize(  # with biases, without, shared keys, norms over heads, experts
    "kind", ["sd3", "flux2", "lumina2", "wan", pytest.param("hidream", marks=pytest.mark.slow)]
)
def test_refitted_maps_give_more_of_the_teachers_output(kind):
    teacher, student = models(kind)
    batches = list(TASK.example(teacher, 16, torch.device("cpu")))
    initialise(TASK, student, teacher, [], OPTIONS)
    before, shapes = error(student, teacher, batches), {k: x.shape for k, x in student.state_dict().items()}
    initialise(TASK, student, teacher, batches, OPTIONS)
    assert error(student, teacher, batches) < 0.5 * before
    assert {k: x.shape for k, x in student.state_dict().items()} == shapes
    assert not any(module._forward_pre_hooks for model in (student, teacher) for module in model.modules())


@pytest.mark.parametrize("kind", ["sd3", "flux2", "lumina2"])
def test_a_block_that_runs_by_itself_is_given_what_it_is_in_the_model(kind, monkeypatch):
    """The same weights to the bit as by the whole model for every map, which runs the teacher twice as often."""
    teacher, student = models(kind)
    batches = list(TASK.example(teacher, 4, torch.device("cpu")))
    runs, weights = [], []
    for _ in range(2):
        run = {student: 0, teacher: 0}

        def predict(model, batch, run=run):
            run[model] += 1
            return TASK.predict(model, batch)

        initialise(TASK, student, teacher, [], OPTIONS)
        selection = Selection(student, teacher, {b: b for b in named_blocks(student)}, Squeezer())
        refit.refit(student, teacher, selection.cut_maps(), predict, batches)
        weights.append({name: x.clone() for name, x in student.state_dict().items()})
        runs.append(run[teacher])
        monkeypatch.setattr(refit._Inputs, "_of_block", lambda self, name, whole: whole)
    assert all(torch.equal(x, weights[1][name]) for name, x in weights[0].items())
    assert 2 * runs[0] <= runs[1]


def test_a_map_is_in_the_block_of_its_whole_number():
    """The tenth block is not the first."""

    class Deep(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = torch.nn.ModuleList(torch.nn.Sequential(torch.nn.Linear(2, 2)) for _ in range(11))

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            return x

    model, x = Deep(), torch.ones(1, 2)
    (given,) = refit._Inputs(model, lambda model, batch: model(batch), [x]).of("blocks.10.0")
    for block in model.blocks[:10]:
        x = block(x)
    assert torch.equal(given, x)


def test_what_a_block_writes_into_its_input_is_not_given_to_it_again():
    class Writing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = torch.nn.ModuleList([torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2)})])
            self.blocks[0].forward = lambda x: self.blocks[0]["a"](x.add_(1))

        def forward(self, x):
            return self.blocks[0](x.clone())

    inputs = refit._Inputs(Writing(), lambda model, batch: model(batch), [torch.ones(1, 2)])
    for _ in range(2):
        assert [x.tolist() for x in inputs.of("blocks.0.a")] == [[[2.0, 2.0]]]


def test_a_block_that_is_given_an_object_runs_in_the_model(monkeypatch):
    """A cache of keys, say, which a second run would fill twice."""

    class Counting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = torch.nn.ModuleList([torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2)})])
            self.blocks[0].forward = lambda x, calls: calls.append(1) or self.blocks[0]["a"](x + len(calls))

        def forward(self, x):
            return self.blocks[0](x, Calls())

    class Calls(list):
        pass

    torch.manual_seed(0)
    model = Counting()
    inputs = refit._Inputs(model, lambda model, batch: model(batch), [torch.ones(1, 2)])
    for _ in range(2):
        assert [x.tolist() for x in inputs.of("blocks.0.a")] == [[[2.0, 2.0]]]


@pytest.mark.parametrize("passes", [["abcd", "acd"], ["acd", "abcd"]])
def test_what_one_pass_alone_runs_is_refitted_where_it_runs(passes):
    """As the side interpolator of MDTv2, whose output the blocks after it read; c and d have one input."""
    model = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2) for name in "abcd"})

    def predict(model, names):
        x = torch.ones(1, 2)
        for name in names.removesuffix("cd"):
            x = model[name](x)
        return model["c"](x) + model["d"](x)

    assert refit._in_order(model, dict.fromkeys("dcba"), predict, passes) == [["a"], ["b"], ["c", "d"]]


def test_dropout_of_the_student_is_no_part_of_what_its_maps_read():
    teacher, student = models("pixart")
    batches = list(TASK.example(teacher, 8, torch.device("cpu")))
    initialise(TASK, student, teacher, batches, OPTIONS)
    wanted = {name: x.clone() for name, x in student.state_dict().items()}
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    initialise(TASK, student.train(), teacher, batches, OPTIONS)
    assert student.training and all(torch.equal(x, wanted[name]) for name, x in student.state_dict().items())


def test_padding_of_prompts_takes_no_part():
    """What stands in the place of padding changes nothing: the maps of the text's keys and values are of its tokens."""
    teacher, student = models("pixart")
    (batch,) = TASK.example(teacher, 4, torch.device("cpu"))
    mask = torch.arange(5) < torch.tensor([2, 5, 3, 1])[:, None]
    weights = []
    for padding in (0.0, 50.0):
        text = torch.where(mask[..., None], batch.text, padding)
        initialise(TASK, student, teacher, [replace(batch, text=text, text_mask=mask)], OPTIONS)
        weights.append({name: x.clone() for name, x in student.state_dict().items()})
    for name, x in weights[0].items():
        torch.testing.assert_close(x, weights[1][name], rtol=1e-4, atol=1e-5)


def test_a_student_that_lost_nothing_is_a_copy():
    teacher, _ = models("sd3")
    student = type(teacher).from_config(teacher.config).eval()
    initialise(TASK, student, teacher, list(TASK.example(teacher, 2, torch.device("cpu"))), OPTIONS)
    assert all(torch.equal(x, teacher.state_dict()[name]) for name, x in student.state_dict().items())

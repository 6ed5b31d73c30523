"""Teachers that compute what a narrower student of their class does."""

import torch

from dit_shd.distillation.initialisation.depth import pairs
from dit_shd.distillation.initialisation.selection import Selection
from dit_shd.squeezing.squeezer import Squeezer


def random(model, seed, std=0.2):
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=std, generator=generator)
    return model


class Drawn(Selection):
    """Keeps heads and hidden units at random, so that no rule of choice agrees with them by chance."""

    def _heaviest(self, groups, scores):
        return [group[int(torch.randint(len(group), ()))] for group in groups]

    def _kept(self, space):
        if space.kind != "hidden":
            return super()._kept(space)
        return torch.randperm(space.teacher)[: space.student].sort().values


@torch.no_grad()
def widened(student, teacher):
    """Make a teacher compute what a student does.

    A channel that is not kept has the value of one that is, so that no norm over channels sees it, and no map reads it.
    """
    torch.manual_seed(2)
    choice = Drawn(student, teacher, pairs(student, teacher, None), Squeezer())
    state = teacher.state_dict()
    tables = {f"{name}.weight" for name, module in student.named_modules() if isinstance(module, torch.nn.Embedding)}
    for name, x in student.state_dict().items():
        x = choice.turned(name, x)
        for dim, axis in enumerate(choice.axes.of[name]):
            if axis:
                twin, kept = twins(choice, axis)
                x = x.index_select(dim, twin)
                if dim == 1 and name.endswith(".weight") and name not in tables:
                    x = x * kept.view(-1, *(1,) * (x.ndim - 2))
        state[name].copy_(choice.turned(name, x))
    for (_, wide), (_, narrow) in zip(teacher.named_buffers(), student.named_buffers()):
        if wide.shape != narrow.shape:  # tables of positions that are not in the state
            wide.copy_(narrow.index_select(-1, twins(choice, (("stream", 1),))[0]))


def twins(choice, axis):
    """Of each of the teacher's entries of an axis the student's that it is like, and whether it is kept itself."""
    twin, kept, start = [], [], 0
    for space, copies in axis:
        of = choice.axes.spaces[space]
        chosen = choice.kept.get(space, torch.arange(of.teacher))
        like = torch.full((of.teacher // of.unit,), -1)
        like[chosen[:: of.unit] // of.unit] = torch.arange(len(chosen) // of.unit)
        is_kept = like >= 0
        like[~is_kept] = torch.arange(int((~is_kept).sum())) % (len(chosen) // of.unit)
        features = (like[:, None] * of.unit + torch.arange(of.unit)).flatten()
        for _ in range(copies):
            twin, kept = [*twin, features + start], [*kept, is_kept.repeat_interleave(of.unit)]
            start += of.student
    return torch.cat(twin), torch.cat(kept)

"""Batches of classification: the same however they are divided; mixing, soft targets, what each model sees."""

import copy

import pytest
import torch
import torch.nn.functional as F
from small_classifiers import classification

from dit_shd.core.plugins import Plugin
from dit_shd.core.rng import Draws
from dit_shd.data.augmentation import Augmentation
from dit_shd.data.datasets import DATASETS
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses.shd import SHD
from dit_shd.tasks import Output
from dit_shd.tasks.classification import ImageBatch

WHOLE = Augmentation(crop=[1, 1], ratio=[1, 1], flip=0, policy=None, erasing=0)


def equal(one, other):
    return all(
        torch.equal(value, getattr(other, name)) if isinstance(value, torch.Tensor) else value == getattr(other, name)
        for name, value in vars(one).items()
    )


def rows_of(batch, chosen):
    """Some samples of a batch."""
    values = {k: v[chosen] if isinstance(v, torch.Tensor) else v for k, v in vars(batch).items()}
    return ImageBatch(**values)


def test_mixing_leaves_torchs_generator_alone(monkeypatch):
    """With workers a thread mixes while the main one takes a step, which it has seeded."""
    task, _, _ = classification()
    monkeypatch.setattr(torch, "set_rng_state", None)
    pixels = torch.rand(2, 1, 28, 28)
    mixed, _ = task._mixed(pixels.clone(), torch.tensor([1, 2]), Draws(0, 3, range(2), 2), 0)
    assert not torch.equal(mixed, pixels)


@pytest.mark.parametrize("mixing", ["step", "pair"])
@pytest.mark.parametrize("batch_size", [8, 7])
def test_a_batch_is_the_same_however_it_is_divided(mixing, batch_size):
    """Also in parts that cut a pair; the last of an odd batch is mixed with none."""
    _, _, draw = classification(batch_size, mixing=mixing)
    whole = draw(3, range(batch_size))
    for parts in ([range(4), range(4, batch_size)], [range(1), range(1, 3), range(3, batch_size)]):
        for part in parts:
            assert equal(draw(3, part), rows_of(whole, list(part)))
    assert not torch.equal(whole.pixels, draw(4, range(batch_size)).pixels)
    assert not torch.equal(whole.depth, draw(4, range(batch_size)).depth)
    if batch_size == 7:
        assert whole.targets[6].max() == pytest.approx(0.91)


def test_without_mixing_and_smoothing_targets_are_the_labels_and_an_epoch_has_every_image_once(shapes):
    task, student, draw = classification(8, mixup=0.0, cutmix=0.0, label_smoothing=0.0, augmentation=WHOLE)
    batch = draw(7, range(8))
    assert torch.equal(batch.labels, torch.from_numpy(task.dataset.labels()[batch.indices.numpy()]))
    assert torch.equal(batch.targets, F.one_hot(batch.labels, 10).float())
    task.use(DATASETS.build(Plugin("npz", {"path": str(shapes)})), student)
    seen = torch.cat([draw(step, range(8)).indices for step in range(15)])
    assert sorted(seen.tolist()) == sorted([*range(60)] * 2)


def test_copies_of_an_image_are_augmented_anew_and_lie_apart():
    _, _, draw = classification(8, mixup=0.0, cutmix=0.0, augmentation=Augmentation(repeats=3))
    batch = draw(0, range(8))
    assert batch.indices.tolist() == [*batch.indices[:3].tolist() * 2, *batch.indices[:2].tolist()]
    assert len(set(batch.indices.tolist())) == 3
    assert not torch.equal(batch.pixels[0], batch.pixels[3])
    following = draw(1, range(8)).indices
    assert not set(batch.indices.tolist()) & set(following.tolist())


def test_mixup_and_cutmix_are_those_of_their_papers():
    """Against the definitions: pixels and targets in the same share, or a rectangle and its area."""
    _, _, plain = classification(6, mixup=0.0, cutmix=0.0, label_smoothing=0.2, augmentation=WHOLE)
    first, second = plain(2, range(0, 6, 2)), plain(2, range(1, 6, 2))
    _, _, mixed = classification(6, mixup=0.8, cutmix=0.0, label_smoothing=0.2, augmentation=WHOLE, mixing="pair")
    found = mixed(2, range(0, 6, 2))
    shares = []
    for i in range(3):
        difference = first.pixels[i] - second.pixels[i]
        share = ((found.pixels[i] - second.pixels[i]) * difference).sum() / difference.square().sum()
        wanted = share * first.pixels[i] + (1 - share) * second.pixels[i]
        torch.testing.assert_close(found.pixels[i], wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.targets[i], share * first.targets[i] + (1 - share) * second.targets[i])
        assert found.labels[i] == (first if share > 0.5 else second).labels[i]
        shares.append(float(share))
    assert len({round(share, 4) for share in shares}) == 3
    _, _, cut = classification(6, mixup=0.0, cutmix=1.0, label_smoothing=0.2, augmentation=WHOLE)
    found = cut(2, range(0, 6, 2))
    differs = (first.pixels != second.pixels).any(0)
    taken = ((found.pixels == second.pixels).all(0) & differs)[0]
    inside = torch.zeros(28, 28, dtype=torch.bool)
    y, x = torch.nonzero(taken, as_tuple=True)
    inside[y.min() : y.max() + 1, x.min() : x.max() + 1] = True
    assert torch.equal(torch.where(inside, second.pixels, first.pixels), found.pixels)  # one rectangle for a step
    share = ((found.targets - second.targets) / (first.targets - second.targets))[first.targets != second.targets]
    assert share.std() < 1e-5 and 0 < share[0] < 1 - taken.float().mean() + 1e-6


def test_the_loss_is_cross_entropy_with_soft_targets():
    task, _, draw = classification()
    batch = draw(0, range(8))
    logits = torch.randn(8, 10)
    found = task.losses(Output(logits), batch)["cross_entropy"]
    torch.testing.assert_close(found, F.cross_entropy(logits, batch.targets, reduction="none"))


def test_the_student_leaves_out_what_the_batch_says_and_the_teacher_nothing():
    task, student, draw = classification()
    batch = draw(0, range(8))
    student.train()
    first, again = (task.predict(student, batch).prediction for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, task.predict(student, draw(1, range(8)).to("cpu")).prediction)
    halves = [task.predict(student, draw(0, part)).prediction for part in (range(4), range(4, 8))]
    torch.testing.assert_close(torch.cat(halves), first, rtol=1e-4, atol=1e-5)


def test_a_teacher_of_another_normalisation_sees_the_same_images():
    task, student, draw = classification()
    task.dataset = DATASETS.build(Plugin("digits"))
    other = copy.deepcopy(student).eval()
    with torch.no_grad():  # the same function of images in [0, 1] under mean 0.5 and std 0.25
        weight, bias = other.network.patch_embed.proj.weight, other.network.patch_embed.proj.bias
        bias += weight.sum((1, 2, 3)) * (0.5 - 0.13) / 0.31
        weight *= 0.25 / 0.31
    other.input = type(student.input)(student.input.shape, (0.5,), (0.25,))
    batch = draw(0, range(8))
    student.eval()
    for _ in range(2):
        torch.testing.assert_close(
            task.predict(other, batch).prediction, task.predict(student, batch).prediction, rtol=1e-3, atol=1e-4
        )
        loss = Distiller(task, student, [SHD()])(batch, other)[1]["shd"]  # which looks at the teacher's layers first
        assert abs(loss) < 1e-4, "their maps are the same, too"

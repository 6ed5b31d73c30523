"""Image classification: cross-entropy with soft targets, on augmented and mixed images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit_shd.core import distributed
from dit_shd.core.config import check_ranges, option
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.core.rng import Draws, keyed_numpy, stream
from dit_shd.data.augmentation import Augmentation, EvaluationTransform, ImageInput, TrainTransform, renormalised
from dit_shd.data.augmenter import Augmenter
from dit_shd.data.class_order import in_another_order, other_orders
from dit_shd.data.datasets import DATASETS, Dataset
from dit_shd.data.glance import alike, glance
from dit_shd.data.latent_origin import Kept
from dit_shd.diffusion.adapters import computed_in
from dit_shd.evaluation.accuracy import Accuracy, all_misnamed, measure_accuracy, misnamed, of_learned, wilson
from dit_shd.models import two_heads
from dit_shd.models.classifier import image_input, known_classes
from dit_shd.models.offload import moved
from dit_shd.models.stochastic_depth import branches, set_draws
from dit_shd.tasks import Batch, Output, Task, TeacherFinding, Terms

JUDGED = 64
"""Images on which a teacher is checked before training."""

RENAMED = "rename the folders in the teacher's order (000_NAME, 001_NAME, ...)"
"""What makes the data's classes a teacher's."""
RATES = ("drop_rate", "prob", "drop_prob")
"""Of modules of timm that drop out by a function, that leave out patches, that blank regions."""
OPTIONS = {"p": "drop_rate", "prob": "patch_drop_rate", "drop_prob": "drop_block_rate"}
"""The arguments of architectures that set such rates, by the names that modules have for them."""


@dataclass(frozen=True)
class AccuracyEvaluation:
    """Accuracy while training."""

    data: Plugin | None = option(None, "images that are not trained on: {name: images, path: ..., split: validation}")
    crop: float | None = option(None, "share of the smaller side that is taken; empty: the student's", range=(0.05, 1))
    batch_size: int = option(64, "images of one forward", range=(1, 1e6))


PLAIN, DEIT = AccuracyEvaluation(), Augmentation()


@dataclass(frozen=True, eq=False)
class ImageBatch(Batch):
    """Images with soft targets."""

    pixels: Tensor
    """Normalised for the student [b,c,y,x]."""
    targets: Tensor
    """Probabilities of the classes [b,k]."""
    labels: Tensor
    """The class with the largest share of the image [b]."""
    depth: Tensor
    """Uniform numbers for stochastic depth [b, branches of the student that may be left out]."""


class Classification(Task[ImageBatch]):
    """Image classification (DeiT's recipe, arXiv 2012.12877).

    Args:
        label_smoothing: Share of the target that is spread over all classes.
        mixup: Parameter alpha of the Beta distribution that two images are mixed by (arXiv 1710.09412); 0 for none.
        cutmix: The same of a rectangle of one image in the other (arXiv 1905.04899); 0 for none. Where both are set,
            each is taken half of the time.
        mixing: Draw one share for a whole step, as timm does, or one for each pair of images.
        augmentation: Its keys: crop, ratio, flip, policy, color_jitter, interpolation, erasing, erasing_mode, repeats.
        evaluation: Accuracy while training: data, crop, batch_size.
        workers: Processes that decode and augment, beside each process that trains, while it takes a step; 0: it does
            so itself between steps.
    """

    batch_type: ClassVar = ImageBatch
    measured_by = "accuracy"
    needs = frozenset({"images", "labels"})
    resumable = frozenset({"evaluation", "workers"})
    evaluates_averages = True

    def __init__(
        self,
        label_smoothing: float = 0.1,
        mixup: float = 0.8,
        cutmix: float = 1.0,
        mixing: Literal["step", "pair"] = "step",
        augmentation: Augmentation = DEIT,
        evaluation: AccuracyEvaluation = PLAIN,
        workers: int = 0,
    ) -> None:
        for name, value, high in (
            ("label_smoothing", label_smoothing, 1),
            ("mixup", mixup, 100),
            ("cutmix", cutmix, 100),
        ):
            if not 0 <= value <= high:
                raise UserError(f"task.{name}: wanted a number from 0 to {high}, found {value}")
        if label_smoothing == 1:
            raise UserError("task.label_smoothing: wanted a number below 1, where labels would say nothing, found 1")
        check_ranges(augmentation, "task.augmentation.")
        check_ranges(evaluation, "task.evaluation.")
        self.label_smoothing, self.mixup, self.cutmix, self.mixing = label_smoothing, mixup, cutmix, mixing
        if not 0 <= workers <= 1024:
            raise UserError(f"task.workers: wanted a whole number from 0 to 1024, found {workers}")
        self.augmentation, self.evaluation, self.workers = augmentation, evaluation, workers
        self.draws_beside = workers > 0  # else it augments here, by torchvision's draws from torch's own generator
        self._augmenter: Augmenter | None = None
        self._of_evaluation: list[str] = []

    def check_data(self, dataset: Dataset) -> None:
        """It has images of two classes or more: of one, any classifier is right, and its loss is 0."""
        super().check_data(dataset)
        if dataset.classes < 2:
            notes = "; ".join(dataset.notes)
            raise UserError(
                f"data: wanted images of 2 classes or more to be told apart, found {dataset.classes}"
                + (f" ({notes})" if notes else "")
            )

    def use(self, dataset: Dataset, student: nn.Module) -> None:
        super().use(dataset, student)
        self.input, self.branches = image_input("student", student), branches(student)
        self._augmenter = None

    def check_model(self, role: str, model: nn.Module) -> None:
        """It takes images, and nothing in it is random but stochastic depth, whose draws come with the batch."""
        image_input(role, model)
        if role != "student":
            return
        for name, module in model.named_modules():
            keys = ("p",) if isinstance(module, nn.modules.dropout._DropoutNd) else RATES
            rates = {key: getattr(module, key, 0) for key in keys}
            key = next((key for key, rate in rates.items() if isinstance(rate, (int, float)) and rate > 0), None)
            if key is not None:
                raise UserError(
                    f"{role}: {name} drops out with {key}={rates[key]}; classification has stochastic depth instead "
                    "(drop_path_rate), whose draws do not depend on how a batch is divided; say "
                    f"student.options.{OPTIONS.get(key, key)}=0"
                )

    def check(self, role: str, model: nn.Module) -> None:
        self.check_model(role, model)
        classes = known_classes(role, model)
        if classes != self.dataset.classes:
            raise UserError(f"{role}: knows {classes} classes, the data has {self.dataset.classes}")
        wanted, shape = self.input.shape, image_input(role, model).shape
        if shape != wanted:
            raise UserError(f"{role}: takes images of {list(shape)} [c,y,x], the student's are {list(wanted)}")

    def describe(self, student: nn.Module) -> None:
        if self.dataset.class_names is not None:
            student.register_to_config(class_names=list(self.dataset.class_names))  # type: ignore[operator]

    def check_teacher(
        self, teacher: nn.Module, seed: int, device: torch.device, measure: bool
    ) -> Iterator[TeacherFinding]:
        """Whether its classes have the data's names, where both have some, and whether it knows them."""
        known, names = getattr(teacher, "config", {}).get("class_names"), self.dataset.class_names
        other = misnamed(known, names)
        if other is not None:
            yield TeacherFinding(fault=f"the data's classes are others than it knows: {other}")
        if not measure:
            return
        indices = stream(seed, "judged").permutation(len(self.dataset))[:JUDGED]
        accuracy = self._measure(moved(teacher, device), self.dataset, indices.tolist(), device)
        low, chance = wilson(accuracy.correct[1], accuracy.images)[0], 1 / self.dataset.classes
        figure = f"top-1 {accuracy.correct[1] / accuracy.images:.1%} of {accuracy.images} images to train on"
        fault = f"it knows the data's classes no better than chance ({figure}): other classes, or in another order?"
        yield TeacherFinding(f"teacher: {figure}", fault if low <= chance else None)
        for program, places in other_orders(names if known is None else None).items():
            there = self._measure(moved(teacher, device), self.dataset, indices.tolist(), device, places).correct[1]
            words = f"{there / accuracy.images:.1%} in the order of {program} ({in_another_order(names, places)})"
            better = wilson(there, accuracy.images)[0] > accuracy.correct[1] / accuracy.images
            fault = f"it knows the classes in another order: {figure}, {words}; {RENAMED}" if better else None
            yield TeacherFinding(f"teacher: has no class names; {words}", fault)

    def draw(self, draws: Draws) -> Sequence[ImageBatch]:
        """One pass. Positions 2 i and 2 i + 1 of a step are mixed with each other."""
        pairs = sorted({int(position) // 2 for position in draws.positions})
        positions = [p for pair in pairs for p in (2 * pair, 2 * pair + 1) if p < draws.batch_size]
        both = replace(draws, positions=positions)
        indices = self._indices(both)
        pixels, labels = self._augmented(indices, both), torch.from_numpy(self.dataset.labels()[indices])
        targets = torch.empty(len(positions), self.dataset.classes)
        for first in range(0, len(positions), 2):
            pair = slice(first, first + 2)
            pixels[pair], targets[pair] = self._mixed(pixels[pair], labels[pair], draws, positions[first] // 2)
        chosen = [positions.index(int(position)) for position in draws.positions]
        batch = ImageBatch(
            pass_name="plain",
            step=draws.step,
            indices=torch.from_numpy(indices)[chosen],
            pixels=pixels[chosen],
            targets=targets[chosen],
            labels=targets[chosen].argmax(1),
            depth=draws.uniform("stochastic depth", (self.branches,)).float(),
        )
        return [batch]

    def _indices(self, draws: Draws) -> np.ndarray:
        """The image of each position. With repeats a batch holds so many copies of an image, far from each other."""
        images = -(-draws.batch_size // self.augmentation.repeats)
        first = replace(draws, positions=[p % images for p in draws.positions], batch_size=images)
        return self.dataset.indices(first)

    def _augmented(self, indices: np.ndarray, draws: Draws) -> Tensor:
        """The inputs [b,c,y,x] of some positions."""
        if self._augmenter is None or self._augmenter.transform.seed != draws.seed:
            transform = TrainTransform(self.augmentation, self.input, draws.seed)
            self._augmenter = Augmenter(self.dataset, transform, self.workers)
        return self._augmenter([(int(i), draws.step, int(p)) for i, p in zip(indices, draws.positions)])

    def _mixed(self, pixels: Tensor, labels: Tensor, draws: Draws, pair: int) -> tuple[Tensor, Tensor]:
        """Two images by timm's mixup or cutmix, and their targets; the last of an odd batch stays as it is."""
        from timm.data.mixup import Mixup, mixup_target

        classes, smoothing = self.dataset.classes, self.label_smoothing
        if len(pixels) < 2 or not (self.mixup or self.cutmix):
            return pixels, mixup_target(labels, classes, smoothing=smoothing)
        mix = Mixup(self.mixup, self.cutmix, label_smoothing=smoothing, num_classes=classes)
        with keyed_numpy(draws.seed, "mixing", draws.step, pair if self.mixing == "pair" else 0):
            return mix(pixels, labels)

    def predict(self, model: nn.Module, batch: ImageBatch) -> Output:
        set_draws(model, batch.depth)
        wanted: ImageInput = model.input  # type: ignore[assignment]
        dtype = computed_in(model)  # a teacher may be held in bfloat16
        return Output(model(renormalised(batch.pixels, self.input, wanted).to(dtype)).float())

    def losses(self, output: Output, batch: ImageBatch) -> Terms:
        return {"cross_entropy": -(batch.targets * F.log_softmax(output.prediction, dim=1)).sum(1)}

    def tokens_seen(self, model: nn.Module, batch: ImageBatch) -> int:
        """Patches, and the tokens in front of them; 0 for a network without."""
        network: Any = getattr(model, "network", model)
        patches = getattr(getattr(network, "patch_embed", None), "num_patches", 0)
        return patches + getattr(network, "num_prefix_tokens", 0) if patches else 0

    def example(self, model: nn.Module, images: int, device: torch.device) -> Sequence[ImageBatch]:
        draw = None if device.type == "meta" else torch.Generator(device).manual_seed(0)
        self.input = image_input("model", model)
        classes = known_classes("model", model)
        pixels = torch.randn(images, *self.input.shape, device=device, generator=draw)
        labels = torch.zeros(images, dtype=torch.long, device=device)
        targets = torch.full((images, classes), 1 / classes, device=device)
        depth = torch.ones(images, branches(model), device=device)
        return [ImageBatch("plain", 0, labels, pixels, targets, labels, depth)]

    def check_evaluation(self, student: nn.Module, kept: Kept | None) -> None:
        if self.evaluation.data is None:
            raise UserError(
                "task.evaluation.data: wanted the images that validate_every evaluates on, found none; name some, or "
                "set validate_every=0"
            )
        if kept is not None:
            judged = self._evaluation_data()
            same = len(judged) == len(self.dataset) and alike(glance(judged), glance(self.dataset))
            other = all_misnamed(self.dataset.class_names, judged.class_names)
            key = "task.evaluation.data"
            self._of_evaluation = [f"{key}: its classes are others than are learned: {other}"] if other else []
            self._of_evaluation += [of_learned(key)] if same else []

    def remarks(self, student: nn.Module) -> Sequence[str]:
        return [*self._of_evaluation, *two_heads.remark(student)]

    def _evaluation_data(self) -> Dataset:
        assert self.evaluation.data is not None, "check_evaluation requires it"
        dataset = DATASETS.build(self.evaluation.data, "task.evaluation.data")
        if not self.needs <= dataset.fields or dataset.classes != self.dataset.classes:
            raise UserError(
                f"task.evaluation.data: wanted images of {self.dataset.classes} classes, found "
                f"{', '.join(sorted(dataset.fields))} of {dataset.classes}"
            )
        other = misnamed(self.dataset.class_names, dataset.class_names)
        if other is not None:
            raise UserError(f"task.evaluation.data: wanted the classes of the data, in their order; in it {other}")
        return dataset

    def evaluate(self, student: nn.Module, run: Path, step: int) -> dict[str, float] | None:
        """Every process takes its share of the images."""
        from accelerate.utils import reduce

        state, dataset = distributed.joined(), self._evaluation_data()
        share = range(state.process_index, len(dataset), state.num_processes)
        device = torch.device(state.device or "cpu")
        accuracy = self._measure(student.to(device), dataset, share, device)
        counts: Any = torch.tensor([accuracy.images, *accuracy.correct.values()], device=device)
        images, *correct = reduce(counts, "sum").tolist()  # type: ignore[union-attr]
        total = Accuracy(images, dict(zip(accuracy.correct, correct)))
        return total.figures() if state.is_main_process else None

    def _measure(
        self,
        model: nn.Module,
        dataset: Dataset,
        indices: Sequence[int],
        device: torch.device,
        places: Sequence[int] | None = None,
    ) -> Accuracy:
        transform = EvaluationTransform(image_input("model", model), self.evaluation.crop)
        given = dataset, transform, indices, device, self.evaluation.batch_size
        at = slice(None) if places is None else list(places)
        return measure_accuracy(lambda pixels: model(pixels.to(computed_in(model)))[:, at], *given)

"""Images from a model of noise or of velocity, with classifier-free guidance.

    images, labels = sample(dit_shd.load("runs/student"), count=16, steps=250, guidance=3.8)

Image i depends on the seed and on i only: its noise is a stream of its own, whatever the batch or the process.
"""

import base64
import html
import io
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dit_shd.core import rng
from dit_shd.core.config import cast, make
from dit_shd.core.devices import current_device
from dit_shd.core.errors import UserError, error_line
from dit_shd.core.files import atomic_file
from dit_shd.data.decoder import Decoder, finished
from dit_shd.data.latent_origin import decoder
from dit_shd.data.model_origin import loaded_folder, of_source
from dit_shd.data.pixels import grid
from dit_shd.diffusion import class_names
from dit_shd.diffusion.denoiser import class_numbers, known_classes
from dit_shd.diffusion.guidance import Guided
from dit_shd.diffusion.pipeline_scheduler import check_scheduler
from dit_shd.diffusion.sample_config import VELOCITY_SOLVERS, SampleConfig
from dit_shd.diffusion.sampled_run import of_run, remarks, shifted
from dit_shd.diffusion.solvers import network_calls, solve
from dit_shd.models import loading
from dit_shd.models.compilation import compiled_blocks
from dit_shd.models.evaluation_mode import evaluated, in_turn
from dit_shd.models.families.mdt import kept_biases
from dit_shd.models.offload import device_of
from dit_shd.models.prediction import prediction_of
from dit_shd.models.shape import shape_of

DEFAULT_COUNT, SHOWN = 16, 100
"""Images where no number is given, and the most that a notebook shows."""
OF_FILES = "out", "force", "prompts", "pipeline", "call"
"""Keys of SampleConfig that have no meaning where images are returned, or are drawn by a pipeline."""


PUBLIC_CHANNELS = 4
"""Of the latents for which guiding the first 3 is the public code's."""
_log = logging.getLogger("dit_shd")


class Samples(NamedTuple):
    """Images and their labels; a notebook shows them as a grid."""

    images: np.ndarray
    """Uint8 [count,y,x,c]; with vae=None latents, float32 [count,c,y,x]."""
    labels: np.ndarray
    """Int64 [count]."""

    def save(self, file: str | Path) -> Path:
        """Write an npz as `dit-shd sample` does: arr_0 the images, arr_1 the labels.

        Args:
            file: Its name.

        Raises:
            UserError: It is there already.
        """
        path = Path(file)
        for place in (path, path.with_suffix(".json")):  # a JSON of that name is read as how the images were made
            if place.exists():
                raise UserError(f"{place}: is there already; choose another name")
        with atomic_file(path) as stream:
            np.savez(stream, arr_0=self.images, arr_1=self.labels)
        return path

    def _repr_html_(self) -> str:
        if self.images.dtype != np.uint8:
            return f"<p>{len(self.images)} latents, shape {html.escape(str(self.images.shape[1:]))}</p>"
        stream = io.BytesIO()
        grid(self.images[:SHOWN]).save(stream, format="png")
        png = base64.b64encode(stream.getvalue()).decode()
        shown = f"the first {SHOWN} of {len(self.images)} images" if len(self.images) > SHOWN else "all images"
        return f'<figure><img alt="{shown}" src="data:image/png;base64,{png}"><figcaption>{shown}</figcaption></figure>'


def sample(
    model: nn.Module | str | Path,
    count: int | None = None,
    labels: Sequence[int] | Sequence[str] | np.ndarray | Tensor | int | str = "random",
    **options: Any,
) -> Samples:
    """Images uint8 [count,y,x,c] (with vae=None latents float32 [count,c,y,x]) and their labels int64 [count].

    What was trained on latents is decoded by the autoencoder of the run that `models.load` took the model from.

    Args:
        model: A model, or the name of one, as `dit-shd sample` takes it.
        count: How many images; empty: one for each of `labels`, else 16.
        labels: The class of each image, by number or name, one class of all, or how to choose it (random, balanced).
        options: Keys of SampleConfig (steps, guidance, seed, batch_size, vae, ...).

    Raises:
        UserError: No such model, a key that has no meaning, or a class that the model does not know.
    """
    files = next((key for key in OF_FILES if key in options), None)
    if files is not None:
        of_prompts = files in ("prompts", "pipeline", "call")
        remedy = "dit-shd sample RUN prompts=FILE" if of_prompts else "sample(...).save(FILE) writes an npz"
        raise UserError(f"{files}: is for dit-shd sample, which writes files; {remedy}")
    if isinstance(labels, (list, tuple)) and labels and all(isinstance(x, str) and not x.isdecimal() for x in labels):
        comma = next((str(name) for name in labels if "," in str(name)), None)
        if comma is not None:
            raise UserError(f"labels: '{comma}' has a comma; give one of its parts, or the number of the class")
        labels = ",".join(map(str, labels))
    labels = labels if isinstance(labels, str) else class_numbers(labels)
    count = None if count is None else cast(int, count.item() if isinstance(count, np.generic) else count, "count")
    labels = [labels] * (1 if count is None else count) if isinstance(labels, int) else labels
    if count is None:
        names = SampleConfig(labels=labels).label_names if isinstance(labels, str) else labels
        count = DEFAULT_COUNT if names is None else len(names)
    policy = labels if isinstance(labels, str) else "random"
    named = {"run": str(model)} if isinstance(model, (str, Path)) else {}
    config = make(SampleConfig, {**options, "count": count, "labels": policy, **named}, "sample")
    if isinstance(model, (str, Path)):
        config, model = of_run(config), loading.load_conditional(model).eval()
        nn.Module.to(model, current_device())
    elif not isinstance(model, nn.Module):
        raise UserError(f"model: wanted a model or the name of one, found {type(model).__name__}")
    reason = loading.why_not_conditional(model)
    if reason is not None:
        raise UserError(f"model: {reason}")
    if not config.run:
        config = of_run(replace(config, run=str(loaded_folder(model) or "")))
    config = of_model(config, model)
    config.check()
    known = known_classes(model)
    plan = label_plan(config, known, range(count)) if isinstance(labels, str) else np.asarray(labels, int)
    for remark in class_names.places(() if isinstance(labels, str) else plan.tolist(), model):
        _log.warning("%s", remark)
    if plan.shape != (count,):
        raise UserError(f"labels: wanted {count}, one for each image, found {plan.shape}")
    check_labels(plan, model)
    decode = load_decoder(config, model)
    with prepared(model, config):
        parts = [draw(model, config, indices, plan[indices], decode) for indices in batches(config)]
    return Samples(np.concatenate(parts), plan)


def batches(config: SampleConfig) -> Iterator[range]:
    """The image numbers of every batch: the same cuts whatever the number of processes."""
    count = config.images
    return (range(i, min(i + config.batch_size, count)) for i in range(0, count, config.batch_size))


def label_plan(config: SampleConfig, classes: Sequence[int], indices: Sequence[int]) -> np.ndarray:
    """The classes of some images among those given, int64 [b]: a function of the seed and the image's number."""
    if config.label_list is not None:
        return np.asarray(config.label_list, dtype=np.int64)[
            np.asarray(indices, dtype=np.int64) % len(config.label_list)
        ]
    if config.labels == "balanced":
        places = np.asarray(indices, dtype=np.int64) % len(classes)
    else:
        places = [int(rng.stream(config.seed, "sample label", 0, i).integers(len(classes))) for i in indices]
    return np.asarray(classes, dtype=np.int64)[places]


def check_labels(labels: Sequence[int] | np.ndarray, model: nn.Module) -> None:
    """Refuse classes that a model does not have, or that its training never saw.

    Args:
        labels: The labels of images.
        model: Class-conditional.

    Raises:
        UserError: There are some.
    """
    classes, known = sorted({int(label) for label in labels}), known_classes(model)
    count = shape_of(model).classes
    if classes[0] < 0 or classes[-1] >= count:
        raise UserError(f"labels: wanted classes 0 to {count - 1}, found {classes[0]} to {classes[-1]}")
    unseen = sorted(set(classes) - set(known))
    if unseen:
        raise UserError(f"labels: the model's training never saw class {unseen[0]}; it saw {_shortly(known)}")


def _shortly(classes: Sequence[int]) -> str:
    return ", ".join(map(str, classes[:10])) + (", ..." if len(classes) > 10 else "")


@contextmanager
def prepared(model: nn.Module, config: SampleConfig) -> Generator[None]:
    """A context for all calls of `draw`: no other thread's are between, and blocks are compiled, if so configured."""
    with in_turn(model), compiled_blocks(model) if config.compile else nullcontext():
        yield


def load_decoder(config: SampleConfig, model: nn.Module) -> Decoder:
    """The decoder of the model's latents, as the run or folder that it is from records it."""
    channels = shape_of(model).channels
    origin = of_source(config.run or str(loaded_folder(model) or ""), channels)
    return decoder(config.vae, origin, channels, device_of(model))


@torch.no_grad()
def draw(
    model: nn.Module,
    config: SampleConfig,
    indices: Sequence[int],
    labels: np.ndarray,
    decode: Callable[[Tensor], Tensor],
    on_step: Callable[[float], None] = lambda images: None,
) -> np.ndarray:
    """The images of some numbers: uint8 [b,y,x,c], or what the decoder keeps.

    Args:
        model: Class-conditional.
        config: As of_model gives it.
        indices: The images' numbers [b].
        labels: Their classes [b].
        decode: From latents [b,c,y,x] to pixels.
        on_step: Called after each of the solver's predictions with its share of the work, in images.

    Raises:
        UserError: Something is not finite, or torch.compile failed.
    """
    device, shape = device_of(model), shape_of(model).latents
    guided = Guided(model, torch.from_numpy(labels).to(device), config)

    finite: list[tuple[float, Tensor, Tensor]] = []

    def predict(x: Tensor, time: float) -> Tensor:
        output = guided(x, time)
        finite.append((time, torch.isfinite(x).all(), torch.isfinite(output).all()))
        on_step(len(x) / network_calls(config))
        return output

    try:
        with evaluated(model), kept_biases(model, torch.bfloat16 if config.precision == "bf16" else torch.float32):
            latents = solve(predict, config, indices, shape, device)
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise UserError(f"compile=true: torch.compile failed ({error_line(error)})") from error
    where = f"sampling images {indices[0]}..{indices[-1]}"
    if not bool(torch.isfinite(latents).all()):
        raise UserError(f"{where}: {_first_non_finite(config, finite)} is not finite (NaN or infinity)")
    with torch.autocast(device.type, enabled=False):  # the network has shut it out already
        pixels = decode(latents).float()
    if not bool(torch.isfinite(pixels).all()):
        raise UserError(f"{where}: the autoencoder's output is not finite (NaN or infinity)")
    return finished(decode, pixels, config.rounding)


def _first_non_finite(config: SampleConfig, finite: Sequence[tuple[float, Tensor, Tensor]]) -> str:
    """What first was not finite, by whether the model's input and its output were at each time."""
    guided = "" if config.guidance == 1 else f" under guidance={config.guidance:g}"
    unit = "sigma" if config.solver in VELOCITY_SOLVERS else "timestep"
    for time, input_finite, output_finite in finite:
        if not input_finite:
            break
        if not output_finite:
            return f"the model's output{guided} at {unit} {time:.6g}"
    return f"what solver={config.solver} made in {config.steps} steps of finite model outputs{guided}"


def of_model(config: SampleConfig, model: nn.Module) -> SampleConfig:
    """A SampleConfig with what follows from model and run: solver, numbers of named classes, shift of the steps.

    Raises:
        UserError: A solver for models of another kind, a class that the model does not have, or a pipeline whose
            scheduler is of another kind.
    """
    config = config.of_prediction(prediction_of(model))
    named = class_names.places(config.label_list or (), model)
    if config.label_names:
        config = replace(config, labels=class_names.numbers(config.label_names, model))
    guided, channels = config.guided_channels, shape_of(model).channels
    if config.guidance != 1 and channels > PUBLIC_CHANNELS and guided == SampleConfig.guided_channels:
        words = f"{guided} of {channels} channels are guided, as in the public code, whose latents have 4"
        _log.warning("guided_channels: %s; guided_channels=null guides all", words)
    if config.guidance == 0 and config.guidance_schedule == "constant" and 0 < (guided or 0) < channels:
        words = f"0 predicts without a class on the first {guided} of {channels} channels, and with it on the others"
        _log.warning("guidance: %s; guided_channels=null samples without", words)
    check_scheduler(config.run, model)
    for remark in (*remarks(config), *named):
        _log.warning("%s", remark)
    return shifted(config, model)

"""Which image tokens attend to which words of a prompt, while a text-to-image pipeline draws a picture of it.

Alphabet: T timesteps, h heads, n image tokens, w words. A share is a part of an image token's attention: over all
words, the rest of the text and the image tokens it sums to 1.
"""

import inspect as signatures
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dit_shd.analysis.map_sheets import Extent, LayerSheets, Sheets, extent, spread
from dit_shd.analysis.prompt_words import REST, Word, prompt_words
from dit_shd.attention.capture import Capture
from dit_shd.attention.recording.attach import capture
from dit_shd.attention.recording.selection import Layers
from dit_shd.core.distributed import joined
from dit_shd.core.errors import UserError
from dit_shd.diffusion.adapters import Adapter, adapter_of
from dit_shd.diffusion.assembly import assemble
from dit_shd.diffusion.prompt_generation import call_arguments, draw

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

CONDITION_FIRST = ("ZImagePipeline",)
"""Pipelines whose forward for guidance has the prompt before the empty one; of others it is the last sample."""
TIMESTEPS = 10
ROWS = 256
"""Image tokens of one tile of maps."""


@dataclass(frozen=True, eq=False)
class PromptFindings:
    """The results of an analysis, from which its page is made."""

    name: str
    prompt: str
    pipeline: str
    """Its class."""
    transformer: nn.Module
    picture: np.ndarray
    """uint8 [y,x,c]"""
    words: list[str]
    """The last is the rest of the text."""
    sheets: Sheets
    """Of each word, the maps of all heads over the image tokens."""
    shares: dict[str, np.ndarray]
    """Layer -> mean share of the image tokens' attention [T,h,w], over the whole text."""
    call: Mapping[str, Any]
    """Arguments of the pipeline's call."""


def inspect_prompt(
    place: str,
    prompt: str,
    pipeline_place: str | None,
    given: Mapping[str, Any],
    layers: Layers,
    seed: int,
) -> PromptFindings:
    """Draw a picture of a prompt and record what its tokens attend to.

    Args:
        place: A run of the task text_to_image, a student's folder, or a pipeline.
        prompt: The text.
        pipeline_place: Of a run, its pipeline; None for where it was.
        given: Arguments of the pipeline's call.
        layers: Of the transformer; None for joint attention and cross-attention.
        seed: The seed of the picture's noise.

    Raises:
        UserError: No pipeline, or no layer in which image tokens attend to text tokens.
    """
    pipeline, record = assemble(place, pipeline_place)
    adapter = adapter_of(record.transformer_class, record.adapter)
    call = call_arguments(pipeline, record, dict(given))
    pipeline.to(joined().device)
    pipeline.set_progress_bar_config(disable=True)
    model = pipeline.transformer
    chosen = list(adapter.cross_attention or ["*"]) if layers is None else layers
    drawing = _Drawing(pipeline, adapter, chosen, prompt, seed, call)
    shapes = _layer_shapes(drawing)
    if not shapes:
        raise UserError(
            f"{place}: in no layer of {type(model).__name__} image tokens attend to text tokens, as far as it is known "
            "where they stand; layers= names cross-attention"
        )
    image, heads = next(iter(shapes.values())).shape
    words = prompt_words(pipeline, adapter, prompt, max(shape.text for shape in shapes.values()), call)
    last = max((word.place for word in words), default=0)
    shapes = {name: shape for name, shape in shapes.items() if shape.text > last}  # layers to which a text is cut short
    labels = [*(word.text for word in words), REST]
    size = extent(len(shapes), TIMESTEPS, heads, len(labels), image)
    picture, watch = _recorded_maps(drawing, _spread(list(shapes), size.layers), words, size.timesteps)
    grid = _grid(image, picture.shape[0] / picture.shape[1])
    names = {"heads": [f"head {head}" for head in range(heads)]}
    sheets = Sheets(watch.times, names, [_sheets_of(name, maps, grid, size) for name, maps in watch.maps.items()])
    shares = {name: torch.stack([one.mean(2) for one in maps]).numpy() for name, maps in watch.maps.items()}
    return PromptFindings(place, prompt, type(pipeline).__name__, model, picture, labels, sheets, shares, call)


@dataclass(frozen=True, eq=False)
class _Drawing:
    """The picture of a prompt, drawn as often as it is wanted."""

    pipeline: Any
    adapter: Adapter
    layers: Layers
    """That may be recorded, by pattern."""
    prompt: str
    seed: int
    call: Mapping[str, Any]

    def watched_by(self, watch: "_Watch", **others: Any) -> np.ndarray:
        """The picture; meanwhile a watch takes layers. Others: arguments in place of those of the call."""
        model = self.pipeline.transformer
        with capture(model, self.layers, watch.sink, projections=False), watch.watching(model):
            (picture,) = draw(self.pipeline, [self.prompt], self.seed, range(1), {**self.call, **others})
        return picture


def _layer_shapes(drawing: _Drawing) -> dict[str, "_Shape"]:
    """The layers in which image tokens attend to text, those of the first one's shape, from a drawing of two steps."""
    watch = _Watch(drawing.pipeline, drawing.adapter)
    drawing.watched_by(watch, num_inference_steps=2)
    return watch.alike()


def _recorded_maps(
    drawing: _Drawing, layers: Sequence[str], words: Sequence[Word], timesteps: int
) -> tuple[np.ndarray, "_Watch"]:
    """The picture, and the watch that holds the maps of some layers and words at so many timesteps, evenly spread."""
    count = _number_of_steps(drawing.pipeline, drawing.call)
    steps = set(spread(count, min(timesteps, count)))
    with tqdm(total=len(steps) * len(layers), desc=f"{count} steps", unit="layer") as bar:
        watch = _Watch(drawing.pipeline, drawing.adapter, set(layers), words, steps, bar.update)
        return drawing.watched_by(watch), watch


def _sheets_of(name: str, maps: Sequence[Tensor], grid: tuple[int, int], size: Extent) -> LayerSheets:
    """The sheets of a layer's maps [h,w,n], one of each timestep, with all words, also where they are more than fit."""
    _, words, image = maps[0].shape
    sheets = LayerSheets.begin(name, words, image, (None, grid), replace(size, queries=words))
    for one in maps:
        sheets.add(one, grid, [f"text {share:.0%}" for share in one.sum(1).mean(1).tolist()])
    return sheets


@dataclass
class _Watch:
    """Takes the layers of the conditional forwards of some sampling steps."""

    pipeline: Any
    adapter: Adapter
    layers: set[str] = field(default_factory=set)
    """That are kept; all where it is empty, by their shape alone."""
    words: Sequence[Word] = ()
    steps: set[int] = field(default_factory=lambda: {0})
    tick: Callable[[], object] = field(default=lambda: None)
    """Called for each layer that is kept."""
    maps: dict[str, list[Tensor]] = field(default_factory=dict, init=False)
    """Layer -> of each step [h,w,n]."""
    shapes: dict[str, "_Shape"] = field(default_factory=dict, init=False)
    times: list[int] = field(default_factory=list, init=False)
    _step: int = field(default=-1, init=False)
    _time: float | None = field(default=None, init=False)
    _recorded: bool = field(default=False, init=False)
    _image: Callable[[str], range | None] = field(default=lambda name: None, init=False)
    """Where the image's tokens stand in a layer of the forward that runs."""

    @contextmanager
    def watching(self, model: nn.Module) -> Generator[None]:
        """Count the sampling steps of a model's forwards; a second forward at one timestep is that of guidance."""
        names = [*signatures.signature(model.forward).parameters]
        name = next((name for name in ("timestep", "timesteps", "t") if name in names), None)
        if name is None:
            raise UserError(f"{type(model).__name__}: wanted a forward with an argument timestep, found {names}")

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = {**dict(zip(names, args)), **kwargs}
            time = float(torch.as_tensor(given[name]).flatten()[0])
            self._image = lambda layer: self.adapter.image_tokens(model, layer, given)
            first = time != self._time
            self._step, self._time = self._step + first, time
            self._recorded = first and self._step in self.steps
            if self._recorded:
                self.times.append(self._timestep(time))

        with model.register_forward_pre_hook(before, with_kwargs=True):
            yield

    def _timestep(self, time: float) -> int:
        """The step's timestep as the scheduler counts it: down from the noise, whatever the model is given."""
        known = torch.unique_consecutive(torch.as_tensor(self.pipeline.scheduler.timesteps).double())
        return round(float(known[self._step]) if self._step < len(known) else time)

    @torch.no_grad()
    def sink(self, name: str, layer: Capture) -> None:
        """Take a layer as it runs."""
        image = image_over_text(layer, self._image(name))
        if not self._recorded or image is None or (self.layers and name not in self.layers):
            return
        rows, text = image
        self.shapes[name] = _Shape(layer.heads, len(rows), len(text))
        if not self.layers:
            return
        sample = 0 if type(self.pipeline).__name__ in CONDITION_FIRST else layer.shape[0] - 1
        places = torch.tensor([text[word.place] for word in self.words], dtype=torch.long, device=layer.query.device)
        parts = []
        for first in range(0, len(rows), ROWS):
            maps = layer.map(slice(rows[first], rows[min(first + ROWS, len(rows)) - 1] + 1))[sample]  # [h,r,m]
            named = maps[:, :, places]
            rest = maps[:, :, text[0] : text[-1] + 1].sum(2, keepdim=True) - named.sum(2, keepdim=True)
            parts.append(torch.cat([named, rest.clamp(min=0)], 2).transpose(1, 2).float().cpu())
        self.maps.setdefault(name, []).append(torch.cat(parts, 2))
        self.tick()

    def alike(self) -> dict[str, "_Shape"]:
        """The layers that have as many heads and image tokens as the first."""
        first = next(iter(self.shapes.values()), None)
        return {name: one for name, one in self.shapes.items() if first is not None and one.shape == first.shape}


@dataclass(frozen=True)
class _Shape:
    heads: int
    image: int
    text: int

    @property
    def shape(self) -> tuple[int, int]:
        """Image tokens and heads."""
        return self.image, self.heads


def image_over_text(layer: Capture, image: range | None = None) -> tuple[range, range] | None:
    """The image's rows and the text's keys of a layer; None where no image token attends to text.

    Args:
        layer: Of joint attention, or of cross-attention, whose keys are all text.
        image: The image's tokens among the keys, where the layer's modules do not say where they stand; empty where
            all keys are text.
    """
    n, m = layer.shape[2:]
    where = layer.image if image is None else image
    if where is None or (image is None and where.start == where.stop):
        return None if n == m else (range(n), range(m))
    text = range(where.stop, m) if where.start == 0 else range(where.start)
    joint = n == m and where.stop > where.start
    return (range(where.start, where.stop) if joint else range(n)), text


def _grid(tokens: int, aspect: float) -> tuple[int, int]:
    """Rows and columns of image tokens in a picture `aspect` times as high as wide; a line where they do not fit."""
    rows = max(1, round((tokens * aspect) ** 0.5))
    return (rows, tokens // rows) if tokens % rows == 0 else (1, tokens)


def _spread(names: Sequence[str], count: int) -> list[str]:
    return [names[i] for i in spread(len(names), count)]


def _number_of_steps(pipeline: "DiffusionPipeline", call: Mapping[str, Any]) -> int:
    for given in ("timesteps", "sigmas"):
        if call.get(given) is not None:
            return len(call[given])
    default = signatures.signature(type(pipeline).__call__).parameters["num_inference_steps"].default
    return int(call.get("num_inference_steps", default))


def prompt_numbers(findings: PromptFindings) -> dict[str, Any]:
    """The numbers of the page as JSON: shares of attention by layer, timestep, head and word."""
    return {
        "prompt": findings.prompt,
        "pipeline": findings.pipeline,
        "call": dict(findings.call),
        "words": findings.words,
        "timesteps": findings.sheets.timesteps,
        "shares": {name: values.round(6).tolist() for name, values in findings.shares.items()},
    }

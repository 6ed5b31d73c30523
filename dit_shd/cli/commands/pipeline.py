"""Assemble RUN into a folder OUT that DiffusionPipeline.from_pretrained opens: the pipeline with the student in it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from dit_shd.cli.commands import Command
from dit_shd.core.config import REQUIRED, option
from dit_shd.core.errors import UserError
from dit_shd.core.lock import new_folder
from dit_shd.core.places import Place
from dit_shd.diffusion.assembly import assemble, told_none, write_pipeline
from dit_shd.diffusion.pipelines import reads_text
from dit_shd.diffusion.prompt_generation import adapter_of_record, call_arguments

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

IMAGENET = 1000
"""Classes that diffusers' DiTPipeline takes its model to have."""


@dataclass(frozen=True)
class PipelineConfig:
    """What to assemble."""

    run: Place = option(REQUIRED, "a text-to-image run, a student's folder, or with pipeline= a class-conditional one")
    out: Path = option(REQUIRED, "the folder of the pipeline")
    pipeline: Place | None = option(None, "its folder or hub:OWNER/NAME; empty: the one that the run records")


class Pipeline(Command[PipelineConfig]):
    """Assemble a pipeline with a student in it."""

    config = PipelineConfig
    words: ClassVar = {"run": "RUN", "out": "OUT"}
    words_help = "a text-to-image run, and the folder to write"
    places: ClassVar = {"run": ("model", "RUN")}

    def run(self, config: PipelineConfig) -> None:
        if config.out.exists():
            raise UserError(f"out: '{config.out}' is there already; choose another folder")
        pipeline, record = assemble(config.run, config.pipeline)
        with new_folder(config.out, "dit-shd pipeline") as part:
            write_pipeline(pipeline, record, config.run, part)
        adapter = adapter_of_record(record)
        names = () if adapter is None else adapter.sized_by
        written = {name: getattr(pipeline, name) for name in names}
        learned = "".join(f", {key}={value!r}" for key, value in call_arguments(pipeline, record, {}).items())
        asked = "prompt" if reads_text(config.out) else _of_classes(pipeline)
        opened = f"diffusers.DiffusionPipeline.from_pretrained('{config.out}'{told_none(config.out)})"
        changed = {name: getattr(pipeline, name) for name in names if getattr(pipeline, name) != written[name]}
        if changed:
            sized = "".join(f"pipeline.{name} = {value!r}; " for name, value in changed.items())
            opened = f"pipeline = {opened}; {sized}pipeline"
        print(f"done: {config.out}\nnext: {opened}({asked}{learned})")


def _of_classes(pipeline: "DiffusionPipeline") -> str:
    """The call's arguments of a class-conditional pipeline, which guides by label 1000 whatever its model."""
    transformer = getattr(pipeline, "transformer", None)
    known = IMAGENET if transformer is None else transformer.config.get("num_embeds_ada_norm", IMAGENET)
    return f"class_labels=[0, 1]{'' if known == IMAGENET else ', guidance_scale=1'}"

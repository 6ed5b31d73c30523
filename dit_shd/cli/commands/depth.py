"""Find the blocks that a student of fewer blocks keeps, and write the plan and that student.

A run of blocks is redundant where a linear map from its input predicts its output (PPCL, arXiv 2511.16156). Each run
becomes one block of the student, which begins with the weights of the run's first and learns from what its last gives.
The folder:

    plan.json     which block is which: layers: kept:FOLDER in a loss, initialisation.layers=kept:FOLDER in a run
    student/      the model of fewer blocks with those weights (not of every class; student=false for none)

dit-shd depth runs/dit_teacher keep=6
dit-shd depth hub:OWNER/NAME keep=12 blocks=transformer_blocks inputs=prompts.npz
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

from torch import nn

from dit_shd.analysis.depth import DepthConfig, find_plan
from dit_shd.analysis.inspect import short_name
from dit_shd.cli.commands import Command
from dit_shd.core import hashing
from dit_shd.core.config import checked
from dit_shd.core.errors import UserError
from dit_shd.core.lock import new_folder
from dit_shd.core.run_files import STUDENT
from dit_shd.data.model_origin import of_source
from dit_shd.data.pipeline_record import read_record
from dit_shd.diffusion.assembly import student_folder
from dit_shd.distillation.initialisation.depth import student_of
from dit_shd.distillation.initialisation.initialise import by_number
from dit_shd.distillation.kept import KeptPlan
from dit_shd.models import cards, export, provenance
from dit_shd.models.shape import shape_of

if TYPE_CHECKING:
    from diffusers import ModelMixin

_log = logging.getLogger("dit_shd")


class Depth(Command[DepthConfig]):
    """Find the blocks that a shallower student keeps."""

    config = DepthConfig
    words: ClassVar = {"model": "MODEL"}
    words_help = "run, diffusers transformer folder or asset:NAME"
    places: ClassVar = {"model": ("model", "MODEL")}

    def run(self, config: DepthConfig) -> None:
        """Find, print and write."""
        out, plan = depth_to_folder(config)
        print("\n".join(plan.lines()))
        print(f"written to {out}")


def depth_to_folder(config: DepthConfig) -> tuple[Path, KeptPlan]:
    """Write plan and student.

    Args:
        config: The model, how many blocks to keep, and the folder.

    Returns:
        The folder and the plan.

    Raises:
        UserError: The folder exists; see find_plan and student_of.
    """
    config = checked(config, "depth")
    out = config.out or Path(f"depth_{short_name(config.model)}")
    if out.exists():
        raise UserError(f"{out}: exists already; choose another out=FOLDER")
    model, plan = find_plan(config)
    student = _student(model.cpu(), plan) if config.student else None
    with new_folder(out, "dit-shd depth") as part:
        (part / "plan.json").write_text(plan.text(), encoding="utf-8")
        if student is not None:
            _write(student, part / STUDENT, config.model)
    return out, plan


def _student(model: nn.Module, plan: KeptPlan) -> nn.Module | None:
    """A model of the kept blocks; None, and a warning, where only the plan can be written."""
    try:
        student = student_of(model, plan)
        if numbered := by_number(student, model):
            _log.warning("%s", numbered)
        return student
    except UserError as error:
        _log.warning("no student is written, only the plan: %s", error)
        return None


def _write(student: nn.Module, folder: Path, source: str) -> None:
    """A model of kept blocks, with the licence, the schedule, the autoencoder and the pipeline of its source."""
    shape, name = shape_of(student), Path(source).name
    latents = of_source(source, shape.channels) if shape.names("in_channels") else None
    origin, digest = provenance.inherited([provenance.provenance(source)]), hashing.sha256_of_tensors(student)
    card = cards.converted(student, f"blocks of {name} (dit-shd depth)", digest, origin, latents)
    training = export.for_sampling(export.run_values(source))
    place = student_folder(source)
    record = None if place is None else read_record(place)
    export.write(cast("ModelMixin", student), folder, card, latents, training or None, record)

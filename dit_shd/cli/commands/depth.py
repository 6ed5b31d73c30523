"""Find the blocks that a student of fewer blocks keeps, and write the plan and that student.

A run of blocks is redundant where a linear map from its input predicts its output (PPCL, arXiv 2511.16156). Each run
becomes one block of the student, which begins with the weights of the run's first and learns from what its last gives.
The folder:

    plan.json     which block is which: layers: kept:FOLDER in a loss, initialisation.layers=kept:FOLDER in a run
    student/      the model of fewer blocks with those weights (not of every class; student=false for none)

dit-shd depth runs/dit_teacher keep=6
dit-shd depth hub:OWNER/NAME keep=12 blocks=transformer_blocks inputs=prompts.npz
"""

from pathlib import Path
from typing import Any, ClassVar

from dit_shd.analysis.depth import DepthConfig, find_plan
from dit_shd.analysis.inspect import short_name
from dit_shd.cli.commands import Command
from dit_shd.core.config import checked
from dit_shd.core.errors import UserError
from dit_shd.core.files import atomic_folder
from dit_shd.distillation.initialisation.depth import student_of
from dit_shd.distillation.kept import KeptPlan


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
    student: Any = student_of(model.cpu(), plan) if config.student else None
    with atomic_folder(out.resolve()) as part:
        (part / "plan.json").write_text(plan.text(), encoding="utf-8")
        if student is not None:
            student.save_pretrained(part / "student")
    return out, plan

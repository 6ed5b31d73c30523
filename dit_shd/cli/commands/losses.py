"""List every distillation loss: what it reads, what it needs, what it costs, and its paper.

Operations are a share of both models' in a training step without the loss (one plain pass, MDTv2), counted; parameters
are those that the loss learns beside the student's.

dit-shd losses
dit-shd losses student=S/2 teacher=XL/2 sample_size=64
"""

from dataclasses import dataclass

from dit_shd.cli.commands import Command
from dit_shd.core.config import checked, option
from dit_shd.profiling.loss_table import loss_table
from dit_shd.reports.losses_page import losses_text
from dit_shd.tasks.diffusion import Diffusion


@dataclass(frozen=True)
class LossesConfig:
    """The pair that costs are counted for."""

    student: str = option("S/2", "size of the student, of MDTv2")
    teacher: str = option("B/2", "size of the teacher")
    sample_size: int = option(32, "height and width of a latent; 32 is 256 tokens", range=(2, 1024))


class Losses(Command[LossesConfig]):
    """List every distillation loss."""

    config = LossesConfig

    def run(self, config: LossesConfig) -> None:
        """Count and print."""
        config = checked(config, "losses")
        print(losses_text(loss_table(Diffusion(mask_ratio=None), config.student, config.teacher, config.sample_size)))

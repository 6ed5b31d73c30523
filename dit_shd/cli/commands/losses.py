"""List every distillation loss, or one: what it reads, what it needs, what it costs, and its paper.

Operations are a share of both models' in a training step without the loss (one plain pass, MDTv2), counted; parameters
are those that the loss learns beside the student's.

The keys of a loss are shown by dit-shd train --help LOSS.

dit-shd losses
dit-shd losses shd
dit-shd losses student=S/2 teacher=XL/2 sample_size=64
"""

from dataclasses import dataclass
from typing import ClassVar

from dit_shd.cli.commands import Command
from dit_shd.core.config import checked, option
from dit_shd.distillation.losses import LOSSES
from dit_shd.profiling.loss_table import loss_table
from dit_shd.reports.losses_page import losses_text
from dit_shd.tasks.diffusion import Diffusion


@dataclass(frozen=True)
class LossesConfig:
    """The losses, and the pair that costs are counted for."""

    loss: str | None = option(None, "one of them alone; empty: all")
    student: str = option("S/2", "size of the student, of MDTv2")
    teacher: str = option("B/2", "size of the teacher")
    sample_size: int = option(32, "height and width of a latent; 32 is 256 tokens", range=(2, 1024))


class Losses(Command[LossesConfig]):
    """List every distillation loss."""

    config = LossesConfig
    words: ClassVar = {"loss": "[LOSS]"}
    words_help = "one loss alone"

    def run(self, config: LossesConfig) -> None:
        """Count and print."""
        config = checked(config, "losses")
        names = LOSSES.names()
        if config.loss is not None:
            LOSSES.find(config.loss)
            names = [config.loss]
        sizes = config.student, config.teacher, config.sample_size
        print(losses_text(loss_table(Diffusion(mask_ratio=None), *sizes, names)))

"""Pictures of several models side by side on a page: prompts as rows, models as columns.

Each samples file is one that `dit-shd sample prompts=...` wrote; with the same prompts and seed a row is of one noise:

    dit-shd sample PIPELINE prompts=prompts.txt out=teacher.npz
    dit-shd sample runs/student prompts=prompts.txt out=student.npz
    dit-shd pictures teacher.npz student.npz names=[teacher,student]
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dit_shd.cli.commands import Command
from dit_shd.core.config import REQUIRED, check_ranges, checked, option
from dit_shd.core.errors import UserError
from dit_shd.core.places import Place
from dit_shd.data.image_sets import ImageSet
from dit_shd.data.open_images import open_images
from dit_shd.evaluation import results
from dit_shd.reports.pictures_page import write_pictures_page


@dataclass(frozen=True)
class PicturesConfig:
    """The samples and the page."""

    samples: list[Place] = option(REQUIRED, "npz files of dit-shd sample prompts=..., the teacher's first")
    names: list[str] | None = option(None, "the models' names on the page; of their runs or files if left out")
    count: int = option(24, "prompts that are shown, the first ones", range=(1, 10_000))
    out: Path = option(Path("pictures.html"), "the page")
    force: bool = option(False, "overwrite an existing page")


class Pictures(Command[PicturesConfig]):
    """Show pictures of several models side by side."""

    config = PicturesConfig
    words: ClassVar = {"samples": "SAMPLES..."}
    words_help = "npz files that dit-shd sample wrote of the same prompts; the teacher's first"

    def run(self, config: PicturesConfig) -> None:
        print(f"done: {show_pictures(config)}")


def show_pictures(config: PicturesConfig) -> Path:
    """Write the page.

    Args:
        config: The samples and the page.

    Returns:
        The page.

    Raises:
        UserError: Samples without prompts or of other prompts, names that do not fit, or a page at `out`.
    """
    config = checked(config, "pictures")
    check_ranges(config)
    results.new_file(config.out, config.force, config.samples)
    samples = [_open(text) for text in config.samples]
    if not samples:
        raise UserError("samples: wanted at least one npz of dit-shd sample, found none")
    names = config.names or _names(samples)
    if len(names) != len(samples) or len(set(names)) != len(names):
        raise UserError(f"names: wanted {len(samples)} different ones, one for each file, found {', '.join(names)}")
    sets = dict(zip(names, samples))
    write_pictures_page(config.out, sets, _shared_count(sets, config.count))
    return config.out


def _open(text: str) -> ImageSet:
    """Samples with their prompts.

    Raises:
        UserError: They have none.
    """
    samples = open_images(text, "samples")
    if samples.prompts is None:
        raise UserError(
            f"{text}: records no prompts; wanted an npz of dit-shd sample RUN prompts=FILE, with its .json beside it; "
            "models by class stand side by side in dit-shd compare"
        )
    return samples


def _names(samples: list[ImageSet]) -> list[str]:
    """The runs' names, the files' where those repeat, or their whole paths."""
    runs = [Path(str((each.sidecar or {}).get("run", each.name))).name for each in samples]
    stems = [Path(each.name).stem for each in samples]
    return next((names for names in (runs, stems) if len(set(names)) == len(names)), [each.name for each in samples])


def _shared_count(sets: dict[str, ImageSet], count: int) -> int:
    """How many pictures all models have, up to a number.

    Raises:
        UserError: They are of different prompts.
    """
    first = next(iter(sets))
    count = min([count, *(samples.shape[0] for samples in sets.values())])
    wanted = (sets[first].prompts or [])[:count]
    for samples in sets.values():
        prompts = (samples.prompts or [])[:count]
        different = next((i for i, pair in enumerate(zip(wanted, prompts)) if pair[0] != pair[1]), None)
        if different is not None:
            raise UserError(
                f"{samples.name}: prompt {different + 1} is '{prompts[different]}', of {first} "
                f"'{wanted[different]}'; wanted samples of the same prompts in the same order"
            )
    return count

"""Whether images are of the weights that their model has now, by the sampler's settings beside them; without torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dit_shd.core.pretrained import model_folder
from dit_shd.core.weight_files import sha256_of_weights
from dit_shd.data.image_prompts import MODEL


def have_changed(settings: Mapping[str, Any], folders: Sequence[Path]) -> bool:
    """Whether none of the models in some folders has the weights of images; False where that cannot be told.

    Args:
        settings: The sampler's, of the images.
        folders: Of models.
    """
    then = settings.get(MODEL)
    in_bfloat16 = "prompts" in settings and settings.get("precision") == "bf16"  # as a pipeline holds its models
    if not isinstance(then, str) or in_bfloat16 or not folders:
        return False
    now = [sha256_of_weights(folder) for folder in folders]
    return None not in now and then not in now


def are_of_earlier(settings: Mapping[str, Any], run: Path, students: Sequence[Path]) -> bool:
    """Whether images are of a run, and of weights that it had before; False where that cannot be told.

    Args:
        settings: The sampler's, of the images.
        run: The run.
        students: The folders of its models.
    """
    place = settings.get("run")
    if not isinstance(place, str) or not place:
        return False
    sampled = model_folder(Path(place))
    if sampled is None:  # moved since, or named from another folder
        of_run = Path(place).name == run.absolute().name
    else:
        of_run = sampled.resolve() in [student.resolve() for student in students]
    return of_run and have_changed(settings, students)

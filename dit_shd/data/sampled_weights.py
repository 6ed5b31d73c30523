"""Whether images are of the weights that their model has now, by the sampler's settings beside them; without torch."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from dit_shd.core.pretrained import model_folder
from dit_shd.core.run_files import RUN_CONFIG, STUDENT
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
    for folder in folders:
        now = _sha256(folder, _written(folder))
        if now is None or now == then:
            return False
    return True


def are_of_earlier(file: Path, settings: Mapping[str, Any], run: Path, students: Sequence[Path]) -> bool:
    """Whether images beside a run are of weights that it, or the model they are of, had before; False if unknown.

    Args:
        file: Where the sampler wrote its settings; weights that are older are not looked into.
        settings: The sampler's, of the images.
        run: The run.
        students: The folders of its models.
    """
    place = settings.get("run")
    if not isinstance(place, str) or not place:
        return False
    sampled = model_folder(Path(place))
    if sampled is None and not _may_be(place, run):
        return False
    written = max(map(_written, students), default=0.0) if sampled is None else _written(sampled)
    if file.is_file() and written < file.stat().st_mtime:
        return False
    return have_changed(settings, students if sampled is None else [*students, sampled])


def present_place(settings: Mapping[str, Any], file: Path) -> object:
    """Where the model of some images is now: the run that they lie in, where that has their weights, else as recorded.

    A run may have been renamed or copied, and another one may be at its old place.

    Args:
        settings: The sampler's, of the images.
        file: Of the images, or beside them.
    """
    recorded = settings.get("run")
    run = next((folder for folder in file.absolute().parents if (folder / RUN_CONFIG).is_file()), None)
    if not isinstance(recorded, str) or not recorded or run is None:
        return recorded
    for student in sorted(run.glob(f"{STUDENT}*")):
        if settings.get(MODEL) is not None and _sha256(student, _written(student)) == settings[MODEL]:
            return str(run if student.name == STUDENT else student)
    return str(run) if model_folder(Path(recorded)) is None and _may_be(recorded, run) else recorded


def is_teacher(place: str, settings: Mapping[str, Any]) -> bool:
    """Whether a model is a teacher of a run.

    Args:
        place: Of the model.
        settings: The run's.
    """
    teacher = settings.get("teacher")
    teachers = [str(each) for each in (teacher.values() if isinstance(teacher, dict) else [teacher]) if each]
    named = place.startswith(("hub:", "asset:"))
    return bool(place) and (place in teachers or (not named and Path(place).resolve() in map(_resolved, teachers)))


def _resolved(place: str) -> Path | None:
    return None if place.startswith(("hub:", "asset:")) else Path(place).resolve()


def _may_be(place: str, run: Path) -> bool:
    """Whether a run may be what a place was, which is not there: moved since, or named from another folder."""
    return not place.startswith(("hub:", "asset:")) and Path(place).name == run.absolute().name


def _written(folder: Path) -> float:
    """When the newest weights of a folder were written."""
    return max((weights.stat().st_mtime for weights in folder.glob("*.safetensors")), default=0.0)


@lru_cache(maxsize=16)
def _sha256(folder: Path, written: float) -> str | None:
    return sha256_of_weights(folder)

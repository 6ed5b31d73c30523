"""The teacher of a run that is sampled: what is recorded of it beside the samples, and how to sample from it alike."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dit_shd.core.config import changed
from dit_shd.core.pretrained import COPY, config_of_run, folder_of_weights
from dit_shd.core.yaml_files import read_yaml, words_of
from dit_shd.data.latent_origin import AUTO
from dit_shd.diffusion.sample_config import GUIDANCE, SampleConfig

NOT_OPTIONS = ("run", "prompts", "pipeline")
"""What is recorded under names of keys of `dit-shd sample` and is of the student."""


def about_teacher(run: str) -> dict[str, str]:
    """The entry `teacher` of samples: the (first) teacher's place in the config of their run; none without one.

    Args:
        run: A run, a student's folder in it or the file of its weights, or a model that is of no run.
    """
    file = config_of_run(run)
    teacher = None if file is None else read_yaml(file).get("teacher")
    first = next(iter(teacher.values()), None) if isinstance(teacher, dict) else teacher
    return {"teacher": first} if isinstance(first, str) else {}


def teacher_command(samples: Path, out: Path) -> str:
    """The command that samples from the teacher as samples of its student were sampled.

    Args:
        samples: The student's npz, with its settings beside it.
        out: The teacher's.
    """
    beside = samples.with_suffix(".json")
    settings = json.loads(beside.read_text(encoding="utf-8"))
    options = changed(SampleConfig, {key: value for key, value in settings.items() if key not in NOT_OPTIONS})
    of_prompts = {"prompts": str(beside)} if "prompts" in settings else {}
    if of_prompts and GUIDANCE in settings:
        of_prompts[GUIDANCE] = settings[GUIDANCE]  # also where it is the default of classes
    words = words_of({**of_prompts, **options, **_autoencoder(settings), "out": str(out)})
    return shlex.join(["dit-shd", "sample", settings["teacher"], *words])


def _autoencoder(settings: Mapping[str, Any]) -> dict[str, str]:
    """The option `vae` for the teacher where the student's run knew its own.

    The teacher's latents are the same, but it may have no record of its autoencoder, or one of another decoder.
    """
    if settings.get("vae") != AUTO or not settings.get("vae_name"):
        return {}
    run = Path(settings["run"])
    folder = folder_of_weights(run) or run
    copies = (place / COPY for place in (folder, folder.parent))
    return {"vae": next((str(copy) for copy in copies if copy.is_dir()), settings["vae_name"])}

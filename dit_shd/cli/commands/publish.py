"""Put a student on the Hugging Face hub with its card, in one command; the login is huggingface_hub's (hf auth login).

  dit-shd publish runs/shd OWNER/NAME                 private, until private=false
  dit-shd publish runs/shd/student_ema_0.999 OWNER/NAME private=false

The card has the licence that the student inherits from its teacher, and of paths of this machine their last names
alone; others load it as hub:OWNER/NAME. A repository that is there already gets one more commit, without weights of
other names: they stay in its history.
A text-to-image student is drawn with a pipeline: pipeline=hub:OWNER/NAME says where others find the one that was a
folder here.
"""

import glob
import re
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from dit_shd.cli.commands import Command
from dit_shd.core.config import REQUIRED, checked, option
from dit_shd.core.errors import UserError, error_line
from dit_shd.core.json_files import read_object
from dit_shd.core.places import HUB, Place
from dit_shd.core.pretrained import PIPELINE, TRAINING, model_folder, read_config
from dit_shd.core.pretrained import RECORD as AUTOENCODER
from dit_shd.data.pipeline_record import INDEX, PipelineRecord, read_record
from dit_shd.models.loading import load
from dit_shd.models.provenance import provenance

if TYPE_CHECKING:
    from huggingface_hub import HfApi

SUFFIXES = (".safetensors", ".safetensors.index.json", ".model")
"""Ends of the files of weights, and of a tokenizer of sentencepiece."""
FILES = {
    "README.md",
    "config.json",
    "generation_config.json",
    "model_index.json",
    "scheduler_config.json",
    "quantize_config.json",
    "adapter_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    AUTOENCODER,
    TRAINING,
    PIPELINE,
}
"""The other files of a model, its tokenizer and where it is from. Commands write more JSON into such a folder."""
WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")
"""Ends of the files of weights, of which an earlier upload may have had others."""
_NAME = r"[^\s/'\"`,;:()\[\]{}|<>]+"
LOCAL = re.compile(rf"(?<![\w:/.~<])~?/(?:{_NAME}/)+({_NAME})/?")
"""A path of several folders that begins at the root or at home; its last name is what others are told."""
SAMPLED = {"in_channels", "sample_size", "num_classes"}
"""Keys of the config of a model that draws by class."""


@dataclass(frozen=True)
class PublishConfig:
    """The student and its place on the hub."""

    run: Place = option(REQUIRED, "a run, or the folder of a student or model")
    repository: str = option(REQUIRED, "OWNER/NAME on the hub; it is made if it is not there")
    private: bool = option(True, "whether a new repository is private")
    pipeline: str | None = option(None, "of text-to-image models: hub:OWNER/NAME of the recorded one, if a folder here")
    message: str = option("Upload of dit-shd publish", "of the commit")


class Publish(Command[PublishConfig]):
    """Put a student on the Hugging Face hub."""

    config = PublishConfig
    words: ClassVar = {"run": "RUN", "repository": "OWNER/NAME"}
    words_help = "a run or model folder, and a repository of the hub"
    places: ClassVar = {"run": ("model", "RUN")}

    def run(self, config: PublishConfig) -> None:
        """Upload, and print where it is."""
        address, name = publish(config), f"hub:{config.repository.removeprefix('hub:')}"
        folder = model_folder(Path(config.run))
        then = f"load it as {name}"
        record = None if folder is None else read_record(folder)
        if record is not None:
            asked = " pipeline=hub:OWNER/NAME" if record.is_local and config.pipeline is None else ""
            then = f"dit-shd sample {name}{asked} prompts=FILE"
        elif folder is not None and read_config(folder).keys() >= SAMPLED:
            then = f"dit-shd sample {name} count=16"
        print(f"done: {address}\nnext: {then}")


def publish(config: PublishConfig) -> str:
    """Upload the folder of a student with its card.

    Args:
        config: The student and its place.

    Returns:
        The address of the repository.

    Raises:
        UserError: No student that loads, with a card, a name that is none, a public repository where a private one was
            asked for, no login, or no answer of the hub.
    """
    config = checked(config, "publish")
    repository = config.repository.removeprefix("hub:")
    match = HUB.fullmatch(f"hub:{repository}")
    if match is None or not match["owner"] or match["revision"]:
        raise UserError(f"repository: wanted OWNER/NAME, found '{config.repository}'")
    folder = model_folder(Path(config.run)) if Path(config.run).is_dir() else None
    if folder is None:
        raise UserError(f"{config.run}: wanted a run or the folder of a model, found no model in it")
    if folder.name == "transformer" and (folder.parent / INDEX).is_file():
        raise UserError(
            f"{config.run}: is a whole pipeline; publish the run or the student that is in it, which is drawn with the "
            "pipeline that it records, or put the folder on the hub with `hf upload`"
        )
    if not (folder / "README.md").is_file():
        raise UserError(f"{folder}: has no card (README.md), and a model without its licence is not published")
    files, record = _files(folder), read_record(folder)
    _check_pipeline(folder, record, config.pipeline)
    origin = provenance(str(folder))
    if origin.forbids_derivatives:
        raise UserError(
            f"{folder}: {origin.license} forbids to pass on what is made of the models behind it; not published"
        )
    _load(folder)
    print(f"{folder} -> hub:{repository}, licence {origin.license or 'of your choice'}: {', '.join(files)}")
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        stale = _stale(api, repository, config.private, files) if api.repo_exists(repository) else []
        address = api.create_repo(repository, private=config.private, exist_ok=True)
        with _for_others(folder, files, record, config.pipeline) as sent:
            api.upload_folder(
                repo_id=repository,
                folder_path=str(sent),
                commit_message=config.message,
                allow_patterns=[glob.escape(name) for name in files],
                delete_patterns=[glob.escape(name) for name in stale],
            )
    except UserError:
        raise
    except Exception as error:  # of several libraries: no login, no network, no permission
        remedy = "without a network try again later; hf auth login signs in"
        raise UserError(f"hub:{repository}: was not uploaded ({error_line(error)}); {remedy}") from error
    return str(address)


def _check_pipeline(folder: Path, record: PipelineRecord | None, pipeline: str | None) -> None:
    """Say that others do not have the folder of a pipeline that is recorded.

    Raises:
        UserError: A place that is none of the hub's, or for a model that is drawn with no pipeline.
    """
    if pipeline is not None:
        match = HUB.fullmatch(pipeline)
        if match is None or not match["owner"]:
            raise UserError(f"pipeline: wanted hub:OWNER/NAME, found '{pipeline}'")
        if record is None:
            raise UserError(f"pipeline: {folder} records no pipeline, as a text-to-image student does (no {PIPELINE})")
    elif record is not None and record.is_local:
        print(
            f"{folder}: is drawn with the pipeline of {record.pipeline}, a folder that others do not have; say where "
            f"on the hub it is by pipeline=hub:OWNER/NAME, or they have to (only its name goes up, {record.title})"
        )


@contextmanager
def _for_others(
    folder: Path, files: Sequence[str], record: PipelineRecord | None, pipeline: str | None
) -> Generator[Path]:
    """The folder to be uploaded: links to the files, with a record and a card that do not say where things lie here."""
    before = (folder / "README.md").read_text(encoding="utf-8")
    public = None if record is None else replace(record, pipeline=pipeline or record.title)
    card = before
    if record is not None and public is not None:
        card = card.replace(record.pipeline, public.title)
        card = card.replace(f"transformer of {record.title}, a ", f"transformer of {public.title}, a ")
    card = LOCAL.sub(r"\1", card)
    if (card, public) == (before, record):
        yield folder
        return
    with tempfile.TemporaryDirectory() as name:
        part = Path(name)
        for file in set(files) - ({"README.md"} if public is None else {"README.md", PIPELINE}):
            (part / file).symlink_to((folder / file).resolve())
        (part / "README.md").write_text(card, encoding="utf-8")
        if public is not None:
            public.write(part)
        yield part


def _load(folder: Path) -> None:
    """Read the model as others will.

    Raises:
        UserError: Its weights do not fit its config.json, or are not finite.
    """
    try:
        load(folder)
    except UserError as error:
        raise UserError(f"{error}; not published") from error


def _stale(api: "HfApi", repository: str, private: bool, files: list[str]) -> list[str]:
    """Weights of a repository that is there already which the model to come does not have, in words, too.

    Raises:
        UserError: The repository is public, and a private one was asked for.
    """
    info = api.model_info(repository)
    if private and not info.private:
        raise UserError(f"hub:{repository}: is there already and public; private=false publishes in it for all to see")
    present = [sibling.rfilename for sibling in info.siblings or []]
    stale = [name for name in present if "/" not in name and name.endswith(WEIGHTS) and name not in files]
    gone = f", without {', '.join(stale)} of an earlier one" if stale else ""
    print(f"hub:{repository}: is there already ({'private' if info.private else 'public'}); one more commit{gone}")
    return stale


def _files(folder: Path) -> list[str]:
    """What of a model's folder is the model's: its files, none of folders in it.

    Raises:
        UserError: No whole weights in safetensors, or an index of some that are not there.
    """
    from safetensors import SafetensorError, safe_open

    names = sorted(file.name for file in folder.iterdir() if file.is_file())
    weights = [name for name in names if name.endswith(".safetensors")]
    if not weights:
        pickled = next((name for name in names if name.endswith(".bin")), None)
        actual = f"{pickled}; dit-shd convert makes safetensors of it" if pickled else "none"
        raise UserError(f"{folder}: wanted weights in .safetensors, found {actual}")
    for name in weights:
        try:
            with safe_open(folder / name, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(f"{folder / name}: not whole safetensors ({error}); not published") from error
    for index in [name for name in names if name.endswith(".safetensors.index.json")]:
        placed = (read_object(folder / index) or {}).get("weight_map")
        listed = {str(file) for file in placed.values()} if isinstance(placed, dict) else {"weight_map in it"}
        absent = sorted(listed - set(names))
        if absent:
            raise UserError(f"{folder / index}: wanted all that it lists, found no {absent[0]}; not published")
    return [name for name in names if name in FILES or name.endswith(SUFFIXES)]

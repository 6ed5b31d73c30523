"""Names of models, data and files: a path (`~` is the home folder), `asset:NAME`, or a name on the Hugging Face hub.

The hub is asked only for names `hub:OWNER/NAME` (or `hub:OWNER/NAME@REVISION`), so that a mistyped path never becomes
another person's model. The error for a path that does not exist names similar ones. This module imports nothing heavy.
"""

import difflib
import os
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import Annotated, Any, Literal, TypeVar

from dit_shd.core.errors import UserError, error_line

T = TypeVar("T")
PLACE = "place"
Place = Annotated[str, PLACE]
"""The type of an option that takes one of these names; a config expands `~` in it as in a Path."""
Kind = Literal["model", "autoencoder", "images", "dataset of images"]
WANTED: dict[Kind, str] = {
    "model": "a run folder, a diffusers folder, a checkpoint file or asset:NAME",
    "autoencoder": "a folder with a diffusers autoencoder",
    "images": "a folder of images (in class folders, or with captions), tars, Parquet files, an npz or a saved dataset",
    "dataset of images": "an npz file, a folder of images, tars, Parquet files, or a dataset such as digits:validation",
}
"""What a local name may refer to."""
IMAGES: tuple[Kind, ...] = ("images", "dataset of images")
"""Kinds that are data sets there, which may have no owner."""
SHIPPED: tuple[Kind, ...] = ("model", "autoencoder")
"""Kinds that may be among the assets of dit_shd."""
MODEL = f"{WANTED['model']}, or hub:OWNER/NAME"
"""For the help of options that take a model."""
PIXELS = "pixels"
"""In place of an autoencoder: there is none, the pixels are the latents."""
HUB = re.compile(r"hub:(?P<repository>(?P<owner>[\w-][\w.-]*/)?[\w-][\w.-]*)(@(?P<revision>[\w-][\w./-]*))?")
SHOWN = 5
LISTED = 10_000
"""Names of a folder that are compared with a mistyped one."""
ANSWER_SECONDS, IN_ALL_SECONDS = 5.0, 10.0
"""Timeouts for one address of the hub, and for all of them."""


@dataclass(frozen=True)
class Asset:
    """A model that ships with dit_shd: `asset:NAME`."""

    name: str


@dataclass(frozen=True)
class HubName:
    """A repository of the Hugging Face hub: `hub:OWNER/NAME[@REVISION]`; data sets may have no owner."""

    repository: str
    revision: str | None = None
    kind: Literal["model", "dataset"] = "model"

    def __str__(self) -> str:
        return f"hub:{self.repository}" + (f"@{self.revision}" if self.revision else "")

    def files(self) -> list[str] | None:
        """The names of its files; None where the hub cannot be reached (see `unreachable`).

        Raises:
            UserError: There is no such repository or revision, or it needs a login.
        """
        from huggingface_hub import HfApi, errors

        def list_files() -> list[str]:
            about = HfApi().repo_info(
                self.repository, revision=self.revision, repo_type=self.kind, timeout=ANSWER_SECONDS
            )
            return [file.rfilename for file in about.siblings or []]  # type: ignore[union-attr]

        try:
            return _within(IN_ALL_SECONDS, list_files)
        except errors.RevisionNotFoundError as error:
            raise UserError(f"{self}: on the hub it has no revision '{self.revision}'") from error
        except (errors.RepositoryNotFoundError, errors.GatedRepoError) as error:
            what = "model" if self.kind == "model" else "data set"
            raise UserError(
                f"{self}: there is no such {what} on the hub, or it needs a login (hf auth login)"
            ) from error
        except Exception:  # no network, a firewall, HF_HUB_OFFLINE, in the words of several libraries
            return None

    def cached(self, file: str) -> Path | None:
        """One of its files in the local cache; None where it is not there."""
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(self.repository, file, revision=self.revision, repo_type=self.kind)
        return Path(path) if isinstance(path, str) else None

    def download(self, files: Sequence[str]) -> Path:
        """The folder of the local cache with some of its files, downloaded where they are missing.

        Raises:
            UserError: A download failed.
        """
        from huggingface_hub import snapshot_download

        patterns = [re.sub(r"([*?[])", r"[\1]", file) for file in files]
        try:
            folder = snapshot_download(
                self.repository, revision=self.revision, repo_type=self.kind, allow_patterns=patterns
            )
        except Exception as error:
            raise UserError(f"{self}: the download failed ({error_line(error)})") from error
        return Path(str(folder))

    def file(self, name: str) -> Path | None:
        """One of its files, from the local cache or the hub; None where neither has it."""
        path = self.cached(name)
        try:
            return (self.download([name]) / name) if path is None and name in (self.files() or ()) else path
        except UserError:
            return None

    def unreachable(self) -> UserError:
        """The error where `files` gave None and the local cache lacks a file."""
        from huggingface_hub import constants

        why = (
            "HF_HUB_OFFLINE forbids requests to the hub"
            if constants.HF_HUB_OFFLINE
            else "the Hugging Face hub cannot be reached"
        )
        return UserError(f"{self}: {why}, and it is not in the local cache")


@contextmanager
def offline() -> Generator[None]:
    """Inside it data sets of the local cache are found without asking the hub again and again."""
    from datasets import config
    from huggingface_hub import constants

    places: list[Any] = [config, constants]
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = True
        yield
    finally:
        for place, value in zip(places, before):
            place.HF_HUB_OFFLINE = value


def find(text: str | Path, kind: Kind, what: str = "") -> Path | HubName | Asset:
    """What a name refers to: a path that exists, a repository of the hub, or an asset.

    Args:
        text: The name.
        kind: What it should be the name of.
        what: The option, for the error.

    Raises:
        UserError: The path does not exist, or the name is malformed.
    """
    text, what = str(text), f"{what}: " if what else ""
    if kind in SHIPPED and text.startswith("asset:"):
        return Asset(text.removeprefix("asset:"))
    if text.startswith("hub:"):
        match = HUB.fullmatch(text)
        if match is None or not (match["owner"] or kind in IMAGES):
            raise UserError(f"{what}wanted hub:OWNER/NAME or hub:OWNER/NAME@REVISION, found '{text}'")
        return HubName(match["repository"], match["revision"], "dataset" if kind in IMAGES else "model")
    path = Path(expanded(text))
    if not text or not os.path.exists(path):
        raise UserError(f"{what}{_missing(text, path, kind)}")
    return path


def is_here(text: str, kind: Kind) -> bool:
    """Whether a name refers to something on this machine."""
    try:
        return not isinstance(find(text, kind), HubName)
    except UserError:
        return False


def check_values(values: Mapping[str, Any], kinds: Mapping[str, tuple[Kind, str]]) -> None:
    """Check names before anything heavy is imported.

    Args:
        values: The values of options, as a user gave them.
        kinds: By key, the kind and the option's name in errors.

    Raises:
        UserError: A name refers to nothing.
    """
    for key, (kind, what) in kinds.items():
        no_place = kind == "autoencoder" and values.get(key) == PIXELS
        if isinstance(values.get(key), str) and values[key] and not no_place:
            find(values[key], kind, what)


def _missing(text: str, path: Path, kind: Kind) -> str:
    """The error text for a path that does not exist."""
    first, slash, _ = text.partition("/")
    is_hub_name = HUB.fullmatch(f"hub:{text}") and slash and not os.path.exists(first)
    name = text if is_hub_name else "OWNER/NAME"
    hub = f"what is on the Hugging Face hub is named hub:{name}"
    return f"wanted {WANTED[kind]}, found nothing at '{text}' ({instead(path)}); {hub}"


def instead(path: Path) -> str:
    """For the error about a path that does not exist: similar names in its folder, else the first names there."""
    missing = path
    while missing.parent != missing and not os.path.exists(missing.parent):
        missing = missing.parent
    folder = missing.parent
    where = "here" if str(folder) == "." else f"in '{folder}'"
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in islice(entries, LISTED) if not entry.name.startswith("."))
    except OSError:  # a file, or no permission
        return f"'{folder}' is no folder that can be read"
    lead = "" if missing == path else f"there is no '{missing.name}' {where}, "
    near = difflib.get_close_matches(missing.name, names, SHOWN, 0.5)
    if near:
        return f"{lead}did you mean {' or '.join(str(folder / name) for name in near)}?"
    listed = ", ".join([*names[:SHOWN], *(["..."] if len(names) > SHOWN else [])])
    return f"{lead}{where}: {listed}" if names else f"{lead}nothing is {where}"


def expanded(text: str | Path, what: str = "") -> str:
    """A path with the home folder in place of `~` or `~user`; `./~` is a name like any other.

    Args:
        text: The path.
        what: The option, for the error.

    Raises:
        UserError: There is no such user, or the name is not UTF-8.
    """
    text = check_utf8(str(text), what)
    if not text.startswith("~"):
        return text
    path = os.path.expanduser(text)
    if path.startswith("~"):
        user = text.partition("/")[0]
        what = f"{what}: " if what else ""
        raise UserError(f"{what}wanted a path, found '{text}', and there is no user {user[1:]}; a folder is ./{user}")
    return path


def check_utf8(text: str, what: str = "") -> str:
    """The text; names that are not UTF-8 could not be recorded in JSON and YAML.

    Args:
        text: Any, with surrogates for bytes that could not be decoded.
        what: The option, for the error.

    Raises:
        UserError: The text is not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        shown = text.encode("utf-8", "backslashreplace").decode()
        raise UserError(
            f"{f'{what}: ' if what else ''}wanted text in UTF-8, found '{shown}'; rename the file"
        ) from error
    return text


def _within(seconds: float, call: Callable[[], T]) -> T:
    """Return or raise what `call` does, or raise TimeoutError; a call that hangs goes on in its thread."""
    done: list[Any] = []

    def work() -> None:
        try:
            done.append((call(), None))
        except BaseException as error:
            done.append((None, error))

    thread = Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not done:
        raise TimeoutError(f"no answer within {seconds:g} s")
    value, error = done[0]
    if error is not None:
        raise error
    return value

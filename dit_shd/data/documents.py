"""Documents of text: from text files, JSON lines, Parquet, and Hugging Face datasets, here or on the hub."""

import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

from dit_shd.core.errors import UserError, error_line
from dit_shd.core.installation import install_command
from dit_shd.core.names import counted
from dit_shd.core.places import HUB, HubName, expanded, instead, offline
from dit_shd.data.document_rows import Blank, Columns, Document
from dit_shd.data.sources.listing import HIDDEN, scan
from dit_shd.data.sources.splits import DEFAULT, split_at_end, split_of

Unit = Literal["file", "paragraph", "line"]
LINES = (".jsonl", ".ndjson", ".jsonlines")
"""Of JSON lines; suffixes are compared in small letters."""
SUFFIXES = (".txt", ".md", *LINES, ".parquet", ".train", ".dev", ".test", ".tokens", ".raw")
"""Of the files that are read of a folder; the last ones are of the corpora BabyLM and WikiText."""
ROWS = (*LINES, ".parquet")
"""Of tables among them."""
EVERY = "all"
"""In the place of a split: files of all."""
TABLES = (".json", ".csv", ".tsv", ".gz", ".zst", ".zip")
"""Of files whose content is no text to be learned as it is."""
_log = logging.getLogger("dit_shd")


def read_documents(
    path: str, unit: Unit, columns: Columns, split: str = "train", file: str | None = None
) -> list[Document]:
    """All documents of a file, of a folder's files in the order of their names, or of a dataset.

    Args:
        path: A file, a folder of files, a folder that `Dataset.save_to_disk` wrote, or hub:OWNER/NAME.
        unit: What is one document of a text file: all of it, a paragraph (up to an empty line) or a line.
        columns: Where documents are in tables.
        split: Of a dataset, or of a folder whose files are of several by their names; of what is of no split by its
            name, `train` and `all` are all of it.
        file: Of a repository of the hub, which is read alone.

    Raises:
        UserError: Nothing is there, it cannot be read, it holds no text, or it may be of another split.
    """
    if path.startswith("hub:") and file is not None:
        _check_split(Path(file), split)
        documents = list(_of_files(_hub_file(_hub_name(path), file), unit, columns))
    elif path.startswith("hub:"):
        documents = list(_of_dataset(_hub_name(path), columns, split))
    elif file is not None:
        raise UserError(f"data.hub_file: is of hub:OWNER/NAME; of '{path}' say data.path={path.rstrip('/')}/{file}")
    else:
        place = Path(expanded(path))
        if not place.exists():
            raise UserError(f"data.path: wanted text, found nothing at '{path}' ({instead(place)})")
        saved = any((place / name).is_file() for name in ("dataset_dict.json", "state.json"))
        documents = list(_of_dataset(place, columns, split) if saved else _of_files(place, unit, columns, split))
    blank = [document.where for document in documents if isinstance(document, Blank)]
    if blank:
        more = ", ..." if len(blank) > 1 else ""
        text = "data: '%s': left out: %d of %d rows without text (%s%s)"
        _log.warning(text, path, len(blank), len(documents), blank[0], more)
    documents = [document for document in documents if document.text.strip()]
    if not documents:
        raise UserError(f"data.path: wanted text, '{path}' holds none")
    return documents


def _of_files(place: Path, unit: Unit, columns: Columns, split: str = EVERY) -> Iterator[Document]:
    if not place.is_dir():
        _check_split(place.absolute(), split)
    for file in _in_folder(place, split) if place.is_dir() else [place]:
        if file.suffix.lower() in LINES:
            yield from _json_lines(file, columns)
        elif file.suffix.lower() == ".parquet":
            yield from _parquet(file, columns)
        else:
            _check_text(file, columns)
            yield from (Document(text) for text in _units(_read(file), unit))


def _in_folder(folder: Path, split: str) -> list[Path]:
    """The files of a folder, in the order of their names: of one split, where names are of several.

    Hidden files are left out, and beside tables the README, which is about them; links are followed.

    Raises:
        UserError: There are none, or none of the split.
    """
    listing = scan(folder, follow_links=True, what="data.path")
    everything = sorted(map(Path, (*listing.images, *listing.others)))
    names = [name for name in everything if name.suffix.lower() in SUFFIXES]
    if any(name.suffix.lower() in ROWS for name in names):
        names = [name for name in names if name.name != "README.md"]
    if not names:
        raise UserError(f"data.path: wanted files ending in {', '.join(SUFFIXES)}, '{folder}' has none")
    others = [str(name) for name in everything if name.suffix.lower() not in SUFFIXES]
    if others:
        _log.warning("data: '%s': not read, since only %s are: %s", folder, ", ".join(SUFFIXES), counted(others))
    for reason, paths in listing.left_out.items():
        if reason != HIDDEN:  # of which the hub's snapshots always have some
            _log.warning("data: '%s': not read: %s, %s", folder, counted(paths), reason)
    return [folder / name for name in _of_split(folder, names, split)]


def _of_split(folder: Path, names: list[Path], split: str) -> list[Path]:
    """The files of a split, where the names are of several; what is left out is said.

    Raises:
        UserError: None are of it.
    """
    splits, wanted = {name: _split_of(name) for name in names}, split_of(split) or split
    known = sorted({known for known in splits.values() if known is not None})
    if not known:
        _check_split(folder.absolute(), split)
    if split == EVERY or not known or (wanted == DEFAULT and known == [DEFAULT]):
        return names
    kept = [name for name in names if splits[name] == wanted]
    if wanted == DEFAULT and DEFAULT not in known:  # beside corpus_test.jsonl, corpus.jsonl is to be learned
        kept = [name for name in names if splits[name] is None]
    if wanted == DEFAULT and not kept and len(known) == 1:
        _log.warning("data: '%s': its files are of %s by their names, and are read (data.hub_split)", folder, known[0])
        return names
    if not kept:
        raise UserError(
            f"data.hub_split: '{folder}' has files of {', '.join(known)} and none of {split}; name one of them, or "
            f"{EVERY} for all files"
        )
    left_out = [str(name) for name in names if name not in kept]
    if left_out:
        text = "data: '%s': files of %s are read; left out: %s (data.hub_split; %s reads every file)"
        _log.warning(text, folder, split, counted(left_out), EVERY)
    return kept


def _check_split(place: Path, split: str) -> None:
    """Refuse a held-out split of a file, or of a folder's files, whose names do not say that they are of it."""
    named = {split_of(place.parent.name), split_at_end(place.name), split_at_end(place.stem)}
    if (split_of(split) or split) not in {DEFAULT, EVERY, *named}:
        raise UserError(
            f"data.hub_split: no name in '{place}' says that it is of {split}; leave hub_split out, or name another "
            "data.path"
        )


def _split_of(name: Path) -> str | None:
    """The split that a file's name, or a folder's on its way, is of."""
    return next((split for part in (*name.parent.parts, name.name, name.stem) if (split := split_at_end(part))), None)


def _check_text(file: Path, columns: Columns) -> None:
    """Refuse a table that would be read as text, and a text where columns are named."""
    if file.suffix.lower() in TABLES:
        raise UserError(f"data.path: wanted text, JSON lines (.jsonl) or Parquet (.parquet), found '{file}'")
    if columns != Columns():
        raise UserError(
            f"data: column and prompt are of tables (.jsonl, .parquet), and '{file}' is text; leave one out"
        )


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")  # a byte order mark is no letter of the text
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: wanted text in UTF-8 ({error_line(error)})") from error


def _units(text: str, unit: Unit) -> Sequence[str]:
    if unit == "file":
        return [text]
    return text.split("\n") if unit == "line" else re.split(r"\n\s*\n", text.rstrip("\n"))


def _json_lines(file: Path, columns: Columns) -> Iterator[Document]:
    for number, line in enumerate(_read(file).split("\n"), start=1):  # a text may hold other ends of lines, as U+2028
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}:{number}: wanted a JSON object ({error_line(error)})") from error
        if not isinstance(row, dict):
            raise UserError(f"{file}:{number}: wanted a JSON object, found {type(row).__name__}")
        yield columns.document(row, f"{file}:{number}")


def _parquet(file: Path, columns: Columns) -> Iterator[Document]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise _needs("pyarrow") from error
    try:
        batches = parquet.ParquetFile(file).iter_batches(batch_size=1024)
        rows = (row for batch in batches for row in batch.to_pylist())
        yield from (columns.document(row, f"{file}[{number}]") for number, row in enumerate(rows))
    except UserError:
        raise
    except Exception as error:  # a stranger's file can be wrong in any way
        raise UserError(f"{file}: not readable as Parquet ({error_line(error)})") from error


def _hub_name(path: str) -> HubName:
    named = HUB.fullmatch(path)
    if named is None:
        raise UserError(f"data.path: wanted hub:OWNER/NAME or hub:OWNER/NAME@REVISION, found '{path}'")
    return HubName(named["repository"], named["revision"], "dataset")


def _hub_file(name: HubName, file: str) -> Path:
    path = name.file(file)
    if path is None and name.files() is None:
        raise UserError(f"data.path: {name.unreachable()}")
    if path is None:
        raise UserError(f"data.hub_file: {name}: wanted its file '{file}', found none")
    return path


def _of_dataset(place: Path | HubName, columns: Columns, split: str) -> Iterator[Document]:
    try:
        import datasets
    except ImportError as error:
        raise _needs("datasets") from error
    reached = not isinstance(place, HubName) or place.files() is not None
    try:
        if isinstance(place, HubName):
            with nullcontext() if reached else offline():
                data: Any = datasets.load_dataset(place.repository, revision=place.revision)
        else:
            data = datasets.load_from_disk(str(place))
    except Exception as error:
        if isinstance(place, HubName) and not reached:
            raise UserError(f"data.path: {place.unreachable()}") from error
        raise UserError(f"data.path: '{place}' cannot be read by the datasets package ({error_line(error)})") from error
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise UserError(f"data.hub_split: '{place}' has no split '{split}', it has {', '.join(map(str, data))}")
        data = data[split]
    elif split not in (DEFAULT, EVERY, str(data.split)):
        raise UserError(
            f"data.hub_split: '{place}' is one split ({data.split or 'of no name'}), not {split}; leave out hub_split"
        )
    elif split == DEFAULT and split_of(str(data.split)) not in (None, DEFAULT):
        _log.warning("data: '%s': it is one split, %s, and is read (data.hub_split)", place, data.split)
    for number, row in enumerate(data):
        yield columns.document(row, f"{place}[{number}]")


def _needs(package: str) -> UserError:
    return UserError(f"data text: needs the package {package}; install it with: {install_command('language')}")

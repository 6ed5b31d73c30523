"""Training, validation and test data in one folder, recognised by the names of folders or tables."""

import re
import shutil
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePath
from typing import Any

import yaml

from dit_shd.core.errors import UserError
from dit_shd.core.names import counted, printable
from dit_shd.data.sources.base import ChoiceError, missing_package

WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Names of splits (those of the datasets package)."""
DEFAULT = "train"
"""The split of tables if none is given."""
TOP = "."
"""Name of the subset that is in no folder."""
EVERY = "*"
"""All subsets as one."""
README = "README.md"


def split_of(name: str, loosely: bool = False) -> str | None:
    """The split of a folder's name: `train`, `val2017`; with `loosely` also `ILSVRC2012_img_train`."""
    around = r"[-._ 0-9]"
    for split, words in WORDS.items():
        word = f"({'|'.join(words)})"
        pattern = rf"(.*{around})?{word}({around}.*)?" if loosely else rf"{word}{around}*"
        if re.fullmatch(pattern, name.lower()):
            return split
    return None


def split_at_end(name: str) -> str | None:
    """The split that texts' files and folders are of: corpus_test, train-00000-of-00002, train_10M; not The Test."""
    for split, words in WORDS.items():
        if re.fullmatch(rf"(.*[-._])?({'|'.join(words)})([-._]?\d\w*(-of-\d+)?)?", name.lower()):
            return split
    return None


Folders = Collection[tuple[str, ...]]
"""Each as the names on its path."""


@dataclass(frozen=True)
class SplitFolders:
    """Folders of splits."""

    start: int
    """Number of folders around all images."""
    depth: int
    """Number of class folders between those and the splits."""
    names: dict[str, str]
    """The split of each folder's name."""

    @classmethod
    def find(cls, folders: Folders) -> "SplitFolders | None":
        """Find folders of splits among the folders with images; None if there are none."""
        around = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(min(folders), max(folders))))
        for start in range(around, -1, -1):
            inner = {path[start:] for path in folders}
            for depth, names in ((0, _at_the_top(inner)), (1, _below_classes(inner))):
                if names:
                    return cls(start, depth, names)
        return None

    def split(self, path: Sequence[str]) -> str | None:
        """The split folder in a path, None if there is none."""
        position = self.start + self.depth
        return path[position] if len(path) > position else None

    def inner(self, path: tuple[str, ...]) -> tuple[str, ...]:
        """The path from the class folders on, without the split."""
        path = path[self.start :]
        return path[: self.depth] + path[self.depth + 1 :]

    def chosen(self, split: str | None, where: str) -> str:
        """The name of the folder of a split.

        Raises:
            UserError: No split is given, or there is no such folder, or there are two.
        """
        known = ", ".join(printable(name) for name in self.names)
        if split is None:
            raise ChoiceError("split", f"'{where}' has folders of splits ({known}), which are no classes")
        if split in self.names:
            return split
        standard_name = split_of(split)
        folders = [name for name, folder_split in self.names.items() if folder_split == standard_name]
        if len(folders) != 1:
            raise UserError(f"split: wanted one of the folders in '{where}', {known}; found split={split}")
        return folders[0]


def _at_the_top(folders: Folders) -> dict[str, str]:
    """Splits at the top: only splits, at least two among other folders, or one whose images are all in subfolders.

    The last rule is that a class may be called train: then its images are directly in it.
    """
    top = sorted({path[0] for path in folders if path})
    loose = {name: split for name in top if (split := split_of(name, loosely=True))}
    strict = {name: split for name, split in loose.items() if split_of(name)}
    if () not in folders and len(loose) == len(top):
        return loose
    direct = any(len(path) == 1 and path[0] in strict for path in folders)
    return strict if len({*strict.values()}) > 1 or not direct else {}


def _below_classes(folders: Folders) -> dict[str, str]:
    """Splits in class folders: only splits in each, at least two of them."""
    below = {path[1] if len(path) > 1 else "" for path in folders}
    names = {name: split for name in sorted(below) if (split := split_of(name, loosely=True))}
    return names if len(names) == len(below) and len({*names.values()}) > 1 else {}


def tables_of_split(
    files: Sequence[str], root: Path, split: str | None, subset: str | None, where: str
) -> tuple[list[str], list[str]]:
    """The Parquet files of one split and subset, in order, and notes on the others.

    Args:
        files: Paths below `root`; the datasets package derives the split of each from its name.
        root: The folder.
        split: The split; DEFAULT if None.
        subset: The subset, if there are several.
        where: The folder in the user's words, for errors.

    Raises:
        UserError: No datasets package, no such split, or several subsets and none given.
    """
    splits, listed = _resolved(files, root, subset, where)
    name = split or DEFAULT
    if len(splits) == 1 and not _name_splits(files) and split in (None, split_of(root.resolve().name)):
        name = next(iter(splits))
    if name not in splits:
        raise UserError(f"split: '{where}' has no Parquet files of '{name}', it has {', '.join(sorted(splits))}")
    others = {file for other, split_files in splits.items() if other != name for file in split_files}
    chosen = splits[name]
    rest = sorted({*files} - others - {*chosen})
    if both := sorted(others & {*chosen}):
        raise UserError(f"split: '{where}': {counted(both)} are of several splits by their names; rename them")
    if len(listed) > 1:
        notes = [f"a subset of {', '.join(map(printable, listed))}"]
    else:
        chosen, notes = _of_subset(chosen, subset, where)
    if others:
        notes.append(f"left out: {counted(sorted(others))} Parquet files of other splits")
    if rest:
        notes.append(f"left out: {counted(rest)} Parquet files of no split")
    return chosen, notes


def _name_splits(files: Sequence[str]) -> bool:
    """Whether names of files or their folders contain splits."""
    names = {name for file in files for name in (*PurePath(file).parent.parts, PurePath(file).stem)}
    return any(split_of(name, loosely=True) for name in names)


def _of_subset(files: list[str], subset: str | None, where: str) -> tuple[list[str], list[str]]:
    """The files of one subset: `cropped/train-00000-of-00001.parquet` is of the subset cropped.

    Raises:
        UserError: There are several subsets and none is given.
    """
    subsets: dict[str, list[str]] = {}
    for file in files:
        folders = PurePath(file).parent.parts
        depth = next((i for i, name in enumerate(folders) if split_of(name, loosely=True)), len(folders))
        subsets.setdefault("/".join(folders[:depth]) or TOP, []).append(file)
    known = ", ".join(printable(name) for name in subsets)
    if subset == EVERY or (subset is None and (len(subsets) == 1 or not _name_splits(files))):
        return files, [] if len(subsets) == 1 else [f"Parquet files in several folders are read as one set: {known}"]
    if subset is None:
        raise _ambiguous_subset(subsets, where, f" (or subset='{EVERY}': all as one)")
    if subset not in subsets:
        raise UserError(f"subset: '{where}' has no subset '{subset}', it has {known}")
    others = sorted({*files} - {*subsets[subset]})
    return subsets[subset], [f"left out: {counted(others)} Parquet files of other subsets"] if others else []


def _resolved(
    files: Sequence[str], root: Path, subset: str | None, where: str
) -> tuple[dict[str, list[str]], list[str]]:
    """Files by split, and the subsets that the README lists.

    The datasets package resolves names only: it reads a folder of empty files with these names and nothing else.
    """
    try:
        import datasets
    except ImportError as error:
        raise missing_package("datasets") from error
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary).resolve() / "names"
        copy.mkdir()
        listed = _copy_card(root, copy, where)
        lower = {} if listed else {file.lower(): file for file in files}  # Train.parquet is the same split as train
        named = lower if len(lower) == len(files) else {file: file for file in files}
        for file in named:
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            (copy / file).touch()
        if len(listed) > 1 and subset is not None and subset not in listed:
            raise UserError(f"subset: '{where}' has no subset '{subset}', it has {', '.join(map(printable, listed))}")
        try:
            name = subset if len(listed) > 1 else None
            builder: Any = datasets.load_dataset_builder(str(copy), name, cache_dir=str(Path(temporary) / "cache"))
            data_files = {str(split): [*map(Path, paths)] for split, paths in builder.config.data_files.items()}
        except Exception as error:  # untrusted names and READMEs can be wrong in any way
            if len(listed) > 1 and subset is None:
                raise _ambiguous_subset(listed, where, "") from error
            words = " ".join(str(error).replace(str(copy), where).split())[:160]
            raise UserError(f"images: '{where}': the datasets package cannot resolve its splits ({words})") from error
        relative = {
            split: {str(p.relative_to(copy)) for p in paths if p.is_relative_to(copy)}
            for split, paths in data_files.items()
        }
    splits = {split: sorted(named[file] for file in {*named} & paths) for split, paths in relative.items()}
    return {split: paths for split, paths in splits.items() if paths}, listed


def _copy_card(root: Path, copy: Path, where: str) -> list[str]:
    """Copy the README if it lists subsets and their files; the subsets' names.

    Raises:
        UserError: It names files outside of the folder.
    """
    try:
        text = (root / README).read_text(encoding="utf-8")
        head = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
        metadata = yaml.safe_load(head[1]) if head else None
        configs = metadata["configs"] if isinstance(metadata, dict) else []
        names = [str(config["config_name"]) for config in configs]
        elsewhere = re.search(r"\S*(://|::|\.\.)\S*|(?<=[\s'\"])[/~]\S*", yaml.safe_dump(configs))
    except (OSError, ValueError, TypeError, KeyError, RecursionError, yaml.YAMLError):
        return []
    if elsewhere:
        raise UserError(f"images: '{where}': its {README} names data elsewhere ({printable(elsewhere[0])[:60]})")
    if names:
        shutil.copyfile(root / README, copy / README)
    return names


def _ambiguous_subset(subsets: Collection[str], where: str, more: str) -> UserError:
    known = ", ".join(map(printable, subsets))
    return ChoiceError("subset", f"'{where}' has several subsets, {known}", more=more)

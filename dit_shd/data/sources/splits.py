"""Training, validation and test data that lie in one folder, told apart by the names of its folders or tables."""

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
from dit_shd.data.sources.base import needs
from dit_shd.data.sources.listing import counted, printable

WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""What splits are called (those of the datasets package)."""
DEFAULT = "train"
"""Of tables, where no split is asked for."""
TOP = "."
"""Name of the subset that lies in no folder."""
EVERY = "*"
"""All subsets as one."""
README = "README.md"


def split_of(name: str, loosely: bool = False) -> str | None:
    """The split that a folder's name means: `train`, `val2017`; loosely `ILSVRC2012_img_train`, too."""
    around = r"[-._ 0-9]"
    for split, words in WORDS.items():
        word = f"({'|'.join(words)})"
        pattern = rf"(.*{around})?{word}({around}.*)?" if loosely else rf"{word}{around}*"
        if re.fullmatch(pattern, name.lower()):
            return split
    return None


Folders = Collection[tuple[str, ...]]
"""Each as the names on the way there."""


@dataclass(frozen=True)
class SplitFolders:
    """Folders of splits.

    start: so many folders lie around all images; depth: so many folders of classes lie between those and the splits.
    names: the folders, each with its split.
    """

    start: int
    depth: int
    names: dict[str, str]

    @classmethod
    def find(cls, folders: Folders) -> "SplitFolders | None":
        """Look at the folders that hold images."""
        around = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(min(folders), max(folders))))
        for start in range(around, -1, -1):
            inner = {path[start:] for path in folders}
            for depth, names in ((0, _at_the_top(inner)), (1, _below_classes(inner))):
                if names:
                    return cls(start, depth, names)
        return None

    def split(self, path: Sequence[str]) -> str | None:
        """The folder of a split that a path leads through."""
        at = self.start + self.depth
        return path[at] if len(path) > at else None

    def inner(self, path: tuple[str, ...]) -> tuple[str, ...]:
        """The path from the class folders on, without the split."""
        path = path[self.start :]
        return path[: self.depth] + path[self.depth + 1 :]

    def chosen(self, split: str | None, where: str) -> str:
        """The folder's name of the split that is asked for.

        Raises:
            UserError: none is asked for, or there is none such, or two.
        """
        there = ", ".join(printable(name) for name in self.names)
        if split is None:
            raise UserError(
                f"split: '{where}' has folders of splits ({there}), which are no classes: which one? say split=NAME"
            )
        if split in self.names:
            return split
        wanted = split_of(split)
        found = [name for name, kind in self.names.items() if kind == wanted]
        if len(found) != 1:
            raise UserError(f"split: wanted one of the folders in '{where}', {there}; found split={split}")
        return found[0]


def _at_the_top(folders: Folders) -> dict[str, str]:
    """Nothing but splits, at least two splits among others, or one whose images all lie deeper, as those of class
    folders do (for a class may be called train)."""
    top = sorted({path[0] for path in folders if path})
    loose = {name: split for name in top if (split := split_of(name, loosely=True))}
    strict = {name: split for name, split in loose.items() if split_of(name)}
    if () not in folders and len(loose) == len(top):
        return loose
    direct = any(len(path) == 1 and path[0] in strict for path in folders)
    return strict if len({*strict.values()}) > 1 or not direct else {}


def _below_classes(folders: Folders) -> dict[str, str]:
    """Nothing but splits in every class folder, at least two of them."""
    below = {path[1] if len(path) > 1 else "" for path in folders}
    found = {name: split for name in sorted(below) if (split := split_of(name, loosely=True))}
    return found if len(found) == len(below) and len({*found.values()}) > 1 else {}


def tables_of_split(
    files: Sequence[str], root: Path, split: str | None, subset: str | None, where: str
) -> tuple[list[str], list[str]]:
    """The Parquet files of one split and subset, in order, and notes on the others.

    Args:
        files: paths below `root`; the datasets package says of which split each is, by its name.

    Raises:
        UserError: no datasets package, no such split, or several subsets and none asked for.
    """
    splits, listed = _resolved(files, root, subset, where)
    asked = split or DEFAULT
    if len(splits) == 1 and _tell_nothing(files) and split in (None, split_of(root.resolve().name)):
        asked = next(iter(splits))
    if asked not in splits:
        raise UserError(f"split: '{where}' has no Parquet files of '{asked}', it has {', '.join(sorted(splits))}")
    others = {file for name, found in splits.items() if name != asked for file in found}
    chosen = splits[asked]
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


def _tell_nothing(files: Sequence[str]) -> bool:
    parts = {part for file in files for part in (*PurePath(file).parent.parts, PurePath(file).stem)}
    return not any(split_of(part, loosely=True) for part in parts)


def _of_subset(files: list[str], subset: str | None, where: str) -> tuple[list[str], list[str]]:
    """Of files in several folders those of one: `cropped/train-00000-of-00001.parquet` is of the subset cropped.

    Raises:
        UserError: several, and none is asked for.
    """
    found: dict[str, list[str]] = {}
    for file in files:
        folders = PurePath(file).parent.parts
        depth = next((i for i, name in enumerate(folders) if split_of(name, loosely=True)), len(folders))
        found.setdefault("/".join(folders[:depth]) or TOP, []).append(file)
    there = ", ".join(printable(name) for name in found)
    if subset == EVERY or (subset is None and (len(found) == 1 or _tell_nothing(files))):
        return files, [] if len(found) == 1 else [f"Parquet files in several folders are read as one set: {there}"]
    if subset is None:
        raise _which(found, where, f" (or subset='{EVERY}': all as one)")
    if subset not in found:
        raise UserError(f"subset: '{where}' has no subset '{subset}', it has {there}")
    others = sorted({*files} - {*found[subset]})
    return found[subset], [f"left out: {counted(others)} Parquet files of other subsets"] if others else []


def _resolved(
    files: Sequence[str], root: Path, subset: str | None, where: str
) -> tuple[dict[str, list[str]], list[str]]:
    """Files by split, and the subsets that the README lists.

    datasets looks at names only: it is shown empty files of these names, so that it sees what we read and nothing else.
    """
    try:
        import datasets
    except ImportError as error:
        raise needs("datasets") from error
    with tempfile.TemporaryDirectory() as temporary:
        shown = Path(temporary).resolve() / "shown"
        shown.mkdir()
        listed = _copy_card(root, shown, where)
        lower = {} if listed else {file.lower(): file for file in files}  # Train.parquet is no other split than train
        named = lower if len(lower) == len(files) else {file: file for file in files}
        for file in named:
            (shown / file).parent.mkdir(parents=True, exist_ok=True)
            (shown / file).touch()
        if len(listed) > 1 and subset is not None and subset not in listed:
            raise UserError(f"subset: '{where}' has no subset '{subset}', it has {', '.join(map(printable, listed))}")
        try:
            name = subset if len(listed) > 1 else None
            builder: Any = datasets.load_dataset_builder(str(shown), name, cache_dir=str(Path(temporary) / "cache"))
            found = {str(split): [*map(Path, paths)] for split, paths in builder.config.data_files.items()}
        except Exception as error:  # a stranger's names and README can be wrong in any way
            if len(listed) > 1 and subset is None:
                raise _which(listed, where, "") from error
            words = " ".join(str(error).replace(str(shown), where).split())[:160]
            raise UserError(f"images: '{where}': the datasets package cannot tell its splits ({words})") from error
        told = {
            split: {str(p.relative_to(shown)) for p in paths if p.is_relative_to(shown)}
            for split, paths in found.items()
        }
    splits = {split: sorted(named[file] for file in {*named} & paths) for split, paths in told.items()}
    return {split: paths for split, paths in splits.items() if paths}, listed


def _copy_card(root: Path, shown: Path, where: str) -> list[str]:
    """Show datasets the README, too, where it lists subsets and their files; the subsets' names.

    Raises:
        UserError: it names files elsewhere.
    """
    try:
        text = (root / README).read_text(encoding="utf-8")
        head = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
        told = yaml.safe_load(head[1]) if head else None
        configs = told["configs"] if isinstance(told, dict) else []
        names = [str(config["config_name"]) for config in configs]
        elsewhere = re.search(r"\S*(://|::|\.\.)\S*|(?<=[\s'\"])[/~]\S*", yaml.safe_dump(configs))
    except (OSError, ValueError, TypeError, KeyError, RecursionError, yaml.YAMLError):
        return []
    if elsewhere:
        raise UserError(f"images: '{where}': its {README} names data elsewhere ({printable(elsewhere[0])[:60]})")
    if names:
        shutil.copyfile(root / README, shown / README)
    return names


def _which(subsets: Collection[str], where: str, more: str) -> UserError:
    there = ", ".join(map(printable, subsets))
    return UserError(f"subset: '{where}' has several subsets, {there}: which one? say subset=NAME{more}")

"""Whether two checkouts make the same bytes: python tests/same_bytes.py OLD NEW [FOLDER]

The yardstick of a refactoring. Each checkout, by its own code, trains both students of the demo for 60 steps and the
tiny student of tests/conftest.py, samples 50 images and evaluates them, below FOLDER/old and FOLDER/new (a temporary
folder if left out; what is there already is not made again). Then every file of the one is compared with the same of
the other, a line for each, and the exit code is 1 if any differs.

What may differ and how that is told apart:

- timing.jsonl, locks and the pages of evaluations during training are left out;
- paths of checkouts, versions, times and the command that made a file are masked;
- config.yaml and the configuration in a model card are compared key by key wherever a key stands: one that moved into
  another group is the same;
- student/training.json may be there on one side only.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

LEFT_OUT = ("timing.jsonl", "*.lock", "tiny/evaluations/*.html", "log.txt")
MAY_BE_NEW = ("*/student*/training.json",)
MASKED = {"command", "created", "date", "dit_shd", "host", "machine", "pid", "python", "seconds", "time", "versions"}
"""Keys of JSON files whose values tell how and when, not what."""
MASKED |= {"prediction"}  # in a model's config.json only since models of velocity are told apart
WRITE_TINY = '''
"""Written by tests/same_bytes.py: a checkout's own tiny config, taken from its fixtures."""
import shutil
from pathlib import Path

import yaml


def test_write(values):
    folder = Path(__file__).parent
    shutil.copy(values["data"]["path"], folder / "shapes.npz")
    shutil.copytree(values["teacher"], folder / "teacher")
    values["data"]["path"], values["teacher"], values["run"] = "shapes.npz", "teacher", "tiny"
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
'''
SAMPLE = ["count=50", "steps=10", "guidance=2", "labels=balanced", "batch_size=25", "out=samples/images.npz"]
SCORE = ["reference=digits", "features=digits", "metrics=[frechet,inception_score,kid,precision_recall]"]


def make(checkout: Path, folder: Path) -> None:
    """Everything that is compared, by the code of a checkout."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "test_tiny.py").write_text(WRITE_TINY)
    tests = ["-m", "pytest", "-q", "-p", "conftest", "-p", "no:cacheprovider", "--rootdir", ".", "test_tiny.py"]
    stages = {"tiny.yaml": tests}
    for name in ("output", "shd"):
        config = str(checkout / "configs" / f"digits_{name}.yaml")
        stages[f"{name}/student"] = [*command("train"), config, "steps=60", f"run={name}", "checkpoint_every=30"]
    stages["tiny/student"] = [*command("train"), "tiny.yaml"]
    stages["samples/images.npz"] = [*command("sample"), "shd", *SAMPLE]
    stages["samples/results.json"] = [*command("evaluate"), "samples/images.npz", *SCORE]
    for result, words in stages.items():
        if not (folder / result).exists():
            run(checkout, folder, words)


def command(name: str) -> list[str]:
    return ["-m", "dit_shd", name]


def run(checkout: Path, folder: Path, words: list[str]) -> None:
    """Python with the code of a checkout, in a folder; what it prints goes to log.txt."""
    paths = {"PYTHONPATH": os.pathsep.join([str(checkout), str(checkout / "tests")]), "OMP_NUM_THREADS": "1"}
    with (folder / "log.txt").open("a") as log:
        print(f"$ python {' '.join(words)}", file=log, flush=True)
        done = subprocess.run([sys.executable, *words], cwd=folder, env=os.environ | paths, stdout=log, stderr=log)
    if done.returncode:
        sys.exit(f"{checkout}: {' '.join(words)} ended with {done.returncode}; see {folder / 'log.txt'}")


def differences(old: Path, new: Path, masks: dict[Path, list[str]]) -> Iterator[tuple[str, str]]:
    """(file, what differs) of every file of two folders; nothing differs: ''."""
    files = {folder: {p.relative_to(folder) for p in folder.rglob("*") if p.is_file()} for folder in (old, new)}
    for file in sorted(files[old] | files[new]):
        if any(file.match(pattern) for pattern in LEFT_OUT):
            continue
        missing = [name for name, folder in (("old", old), ("new", new)) if file not in files[folder]]
        if missing:
            if not any(file.match(pattern) for pattern in MAY_BE_NEW):
                yield str(file), f"not in {missing[0]}"
            continue
        yield str(file), difference(old / file, new / file, masks[old], masks[new])


def difference(old: Path, new: Path, old_masks: list[str], new_masks: list[str]) -> str:
    """What differs between two files once what may differ is masked; '' for nothing."""
    if old.read_bytes() == new.read_bytes():
        return ""
    try:
        pairs = ((old, old_masks), (new, new_masks))
        texts = [masked(file.read_text(encoding="utf-8"), masks) for file, masks in pairs]
    except UnicodeDecodeError:
        return f"bytes ({old.stat().st_size} and {new.stat().st_size})"
    if old.suffix in (".json", ".jsonl"):
        return first_difference(*(json_lines(text, old.suffix == ".jsonl") for text in texts))
    if old.suffix == ".yaml":
        return first_difference(*(keys(text) for text in texts))
    if old.name == "README.md":
        return first_difference(*(card(text) for text in texts))
    return first_difference(*(text.splitlines() for text in texts))


def masked(text: str, masks: list[str]) -> str:
    for path in masks:
        text = text.replace(path, "FOLDER")
    return text


def json_lines(text: str, several: bool) -> list[str]:
    """Of a JSON file, a line for each value, with its place."""
    values = [json.loads(line) for line in text.splitlines()] if several else json.loads(text)
    return [f"{'.'.join(place)}: {value!r}" for place, value in leaves(values) if not MASKED & set(place)]


def leaves(value: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The values of a nest of lists and mappings that are neither, each with its place."""
    if not isinstance(value, (dict, list)) or not value:
        yield place, value
        return
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield from leaves(inner, (*place, str(key)))


def keys(text: str) -> list[str]:
    """Of a config, every key's last name and its value, sorted: a key may stand in another group."""
    return sorted(f"{place[-1]}: {value!r}" for place, value in leaves(yaml.safe_load(text)))


def card(text: str) -> list[str]:
    """Of a model card, its lines, and its configuration by keys."""
    config = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    return text.splitlines() if config is None else [*text.replace(config[0], "").splitlines(), *keys(config[1])]


def first_difference(old: list[str], new: list[str]) -> str:
    """A few lines that only one of two lists has, or the first place where their order differs."""
    if old == new:
        return ""
    gone, come = ([line for line in one if line not in other] for one, other in ((old, new), (new, old)))
    shown = [f"- {line[:160]}" for line in gone[:4]] + [f"+ {line[:160]}" for line in come[:4]]
    return f"{len(gone)} lines gone, {len(come)} come" + "".join(f"\n      {line}" for line in shown or ["the order"])


def main() -> int:
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    checkouts = [Path(word).resolve() for word in sys.argv[1:3]]
    where = Path(sys.argv[3] if len(sys.argv) == 4 else tempfile.mkdtemp(prefix="same_bytes_")).resolve()
    folders = [where / "old", where / "new"]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(make, checkouts, folders))
    masks = {folder: [str(folder), str(checkout)] for folder, checkout in zip(folders, checkouts)}
    results = list(differences(folders[0], folders[1], masks))
    for file, what in results:
        print(f"{'DIFFERS' if what else 'same   '} {file}{f': {what}' if what else ''}")
    different = sum(bool(what) for _, what in results)
    print(f"{len(results) - different} files are the same, {different} differ ({where})")
    return 1 if different or not results else 0


if __name__ == "__main__":
    sys.exit(main())

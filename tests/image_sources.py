"""Folders of images and tables for tests of sources."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from encoded import pictures
from PIL import Image

from dit_shd.data.sources.captions import Captioned
from dit_shd.data.sources.detect import open_source


def pngs(root: Path, *names: str) -> Path:
    """Different pictures of 8 x 8."""
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pictures(1, seed=i)[0]).save(root / name)
    return root


def labels_by_name(source) -> dict[str, int]:
    """The label of each image."""
    return {source.name(i): int(label) for i, label in enumerate(source.labels)}


def notes(source) -> str:
    """All notes of a source."""
    return "\n".join(source.notes)


def write_tables(root: Path, files: dict[str, int], names: dict[str, list[str]] | None = None) -> Path:
    """Parquet files of two rows; the label says in which file a row lies."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    stream = io.BytesIO()
    Image.fromarray(pictures(1)[0]).save(stream, "png")
    cells = [{"bytes": stream.getvalue(), "path": None}] * 2
    for file, label in files.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        table = pa.table({"image": cells, "label": [label] * 2})
        if names and file in names:
            features = {"image": {"_type": "Image"}, "label": {"names": names[file], "_type": "ClassLabel"}}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        parquet.write_table(table, root / file)
    return root


TEXTS = {"a": "a thin seven", "b": "two digits", "c": None}


def png(number):
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(stream, "png")
    return stream.getvalue()


def captioned(place, column=None):
    source = open_source(str(place))
    return Captioned(source, source.texts(column))


def write_tar(file, members):
    with tarfile.open(file, "w") as archive:
        for name, data in members.items() if isinstance(members, dict) else members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return str(file)

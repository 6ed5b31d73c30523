"""Grids of samples beside a study file, each with the hash of its cell inside: a page shows none of other settings."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dit_shd.core.files import atomic_file
from dit_shd.core.json_files import read_object
from dit_shd.reports.figures.training import grid_figure
from dit_shd.study.cell_run import SAMPLES, STAGES
from dit_shd.study.design import Cell
from dit_shd.study.results import Progress

SHOWN_IMAGES = 40
KEY = "dit_shd cell"
"""Of the text in the PNG."""


def sample_grids(progress: Progress, folder: Path, place: Callable[[Cell], Path]) -> dict[str, bytes]:
    """Variant -> a grid of the images of its first finished seed that is there.

    Args:
        progress: The study's cells and rows.
        folder: Where the grids are kept, to make a page anew without the cells. One of settings that the study has no
            more is kept under its hash, for their return.
        place: Gives a cell's folder.
    """
    grids: dict[str, bytes] = {}
    for cell in progress.cells:
        if cell in progress.results and progress.results[cell].done and cell.variant not in grids:
            samples, stages = place(cell) / SAMPLES, read_object(place(cell) / STAGES) or {}
            sampled = stages.get("sha256") == cell.sha256 and "sample" in stages.get("done", ())
            if sampled and samples.is_file():
                with np.load(samples, allow_pickle=False) as archive:
                    grid = grid_figure(archive["arr_0"][:SHOWN_IMAGES], columns=10, enlarge=2)
                _keep(_marked(grid, cell.sha256), folder / f"{cell.variant}.png", progress)
            for file in (folder / f"{cell.variant}.png", _aside(folder, cell.variant, cell.sha256)):
                grid = file.read_bytes() if file.is_file() else b""
                # earlier versions wrote no hash: theirs is of this cell unless the study has had other settings
                if grid and (_mark(grid) or ("" if progress.others else cell.sha256)) == cell.sha256:
                    grids[cell.variant] = grid
    return {variant: grids[variant] for variant in progress.study.names if variant in grids}


def _keep(grid: bytes, file: Path, progress: Progress) -> None:
    """Write a grid; the one of settings that no cell has any more is kept aside."""
    before = _mark(file.read_bytes()) if file.is_file() else ""
    if before and before not in {cell.sha256 for cell in progress.cells}:
        file.replace(_aside(file.parent, file.stem, before))
    file.parent.mkdir(exist_ok=True)
    with atomic_file(file) as stream:
        stream.write(grid)


def _aside(folder: Path, variant: str, sha256: str) -> Path:
    return folder / f"{variant}-{sha256[:8]}.png"


def _marked(png: bytes, sha256: str) -> bytes:
    """A PNG with the hash as a text."""
    texts, stream = PngInfo(), BytesIO()
    texts.add_text(KEY, sha256)
    Image.open(BytesIO(png)).save(stream, "png", pnginfo=texts)
    return stream.getvalue()


def _mark(png: bytes) -> str:
    """The hash in a PNG; empty for none, and for what is no PNG (a pointer of Git LFS)."""
    try:
        return Image.open(BytesIO(png)).info.get(KEY, "")
    except OSError:
        return ""

"""The pictures of a page: of its rows' own samples, whatever others the folder holds."""

import io
import shutil

import numpy as np
from PIL import Image
from studies import run

from dit_shd.study.pictures import sample_grids
from dit_shd.study.runner import Runner


def test_the_page_has_no_pictures_of_other_settings(study, tmp_path):
    """After a change and back the rows of before count, nothing runs, and their pictures are those of before."""

    def shown(count):
        runner = Runner(study({"cell": 0}, sampling={"count": count}), print)
        return sample_grids(runner.progress(), tmp_path / "samples", runner.place).get("output")

    grids = []
    for count in (2, 3, 2):
        run(study({"cell": 0}, sampling={"count": count}))
        for file in (tmp_path / "cells").rglob("samples.npz"):  # the stand-in draws the seed alone
            np.savez(file, arr_0=np.full((4, 8, 8, 1), 70 * count, np.uint8))
        grids.append(shown(count))
    assert [Image.open(io.BytesIO(grid)).getpixel((4, 4)) for grid in grids] == [140, 210, 140]
    shutil.rmtree(tmp_path / "cells")
    assert [shown(3), shown(2)] == grids[1:], "without cells, too"
    Image.open(io.BytesIO(grids[0])).save(tmp_path / "samples" / "output.png")  # of an earlier version: of which cell?
    assert shown(3) is None and shown(2) == grids[0]


def test_what_is_no_picture_is_drawn_anew(study, tmp_path):
    """A pointer of Git LFS, an empty file of a full disk."""
    run(study({"cell": 0}))
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "output.png").write_text("version https://git-lfs.github.com/spec/v1")
    runner = Runner(study({"cell": 0}), print)
    grids = sample_grids(runner.progress(), tmp_path / "samples", runner.place)
    assert grids["output"].startswith(b"\x89PNG")


def test_a_picture_of_an_earlier_version_is_of_the_one_study_that_there_was(study, tmp_path):
    run(study({"cell": 0}))
    (tmp_path / "samples").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "samples" / "output.png")
    shutil.rmtree(tmp_path / "cells")
    runner = Runner(study({"cell": 0}), print)
    kept = sample_grids(runner.progress(), tmp_path / "samples", runner.place)
    assert kept == {"output": (tmp_path / "samples" / "output.png").read_bytes()}

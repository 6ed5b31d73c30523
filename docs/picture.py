"""docs/demo.png: a row of samples for each of several npz files of dit-shd sample.

    dit-shd sample asset:digits_teacher count=500 steps=50 guidance=2 guidance_schedule=constant labels=balanced \
        batch_size=50 out=teacher.npz
    dit-shd study experiments/digits_main/study.yaml
    cells=experiments/digits_main/cells
    python docs/picture.py docs/demo.png teacher=teacher.npz \
        "student, output only=$cells/teacher-output-seed0/samples.npz" \
        "student, output + SHD=$cells/teacher-pairwise-seed0/samples.npz"
"""

import sys
from pathlib import Path

import numpy as np

from dit_shd.reports.figures.rows import rows_picture


def main(out: str, *labelled: str) -> None:
    """Draw the rows.

    Args:
        out: The picture.
        labelled: label=FILE.npz for each row; a comma ends a line of the label.
    """
    rows = {}
    for word in labelled:
        label, _, file = word.partition("=")
        with np.load(file, allow_pickle=False) as samples:
            rows[label.replace(", ", "\n")] = samples["arr_0"]
    Path(out).write_bytes(rows_picture(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""docs/demo.png: a row of samples for each of several npz files of dit-shd sample.

    dit-shd train digits_from_teacher run=runs/shd
    dit-shd train digits_from_teacher run=runs/output losses='[{name: output, weight: 1.0}]'
    for model in asset:digits_teacher runs/output runs/shd; do
        dit-shd sample $model count=500 steps=50 guidance=2 guidance_schedule=constant labels=balanced \
            batch_size=50 out=$(basename $model).npz
    done
    python docs/picture.py docs/demo.png teacher=asset:digits_teacher.npz "student, output only=output.npz" \
        "student, output + SHD=shd.npz"
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

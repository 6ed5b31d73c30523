"""Whether a place may hold a run: nothing is there, or a run, or what one that was killed had begun."""

from pathlib import Path

from dit_shd.core.errors import UserError
from dit_shd.core.lock import LOCK
from dit_shd.core.run_files import RUN_CONFIG

BEGUN = (LOCK, f".{RUN_CONFIG}.")
"""All that a run folder can hold before its config.yaml."""


def refuse_other(path: Path) -> None:
    """Refuse what is there and is not a run.

    Args:
        path: Of the run folder.

    Raises:
        UserError: A file, or a folder of other things.
    """
    if (path / RUN_CONFIG).exists() or not path.exists():
        return
    if not path.is_dir() or any(not file.name.startswith(BEGUN) for file in path.iterdir()):
        raise UserError(f"{path}: exists and is not a run folder; choose another run=FOLDER")

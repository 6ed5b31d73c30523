"""What the losses of a run were calibrated to: made once, kept in the run folder, read back on resume."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dit_shd.core.errors import UserError
from dit_shd.core.files import write_text
from dit_shd.distillation.losses import Loss

FILE = "calibration.json"
_log = logging.getLogger("dit_shd")


def write(run: Path, calibrated: Mapping[str, Any]) -> None:
    """Keep what calibration gave, by the losses' names."""
    write_text(run / FILE, json.dumps(calibrated, indent=1) + "\n")


def restore(run: Path, losses: Mapping[str, Loss], report: bool) -> None:
    """Give losses back what they were calibrated to.

    Args:
        run: The run folder.
        losses: Those that are calibrated, by name.
        report: Whether to log it.

    Raises:
        UserError: The file is damaged, or of other losses.
    """
    file = run / FILE
    try:
        calibrated = json.loads(file.read_text(encoding="utf-8"))
        for name, loss in losses.items():
            loss.restore(calibrated[name])
            rows = [(key, at, entry) for key, value in calibrated[name].items() for at, entry in value.items()]
            for key, at, entry in rows if report else ():
                _log.info("%s %s, %s: %s", name, key, at, entry)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: not readable as a calibration ({error}); move it away to find it anew") from error

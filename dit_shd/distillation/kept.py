"""A student of fewer blocks of its teacher: which blocks it keeps, and which it stands for (PPCL, arXiv 2511.16156)."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dit_shd.core.errors import UserError

KEPT = "kept:"
"""How a config names a plan: layers: kept:PLAN."""


@dataclass(frozen=True)
class KeptPlan:
    """The teacher's blocks in intervals, one for each block of the student."""

    weights: Mapping[str, str]
    """Student block -> the teacher's block whose weights it begins with."""
    layers: Mapping[str, str]
    """Student block -> the last of the teacher's blocks that it stands for, from which it learns."""
    errors: Mapping[str, float]
    """Student block -> what the best linear map over its interval leaves of the variance; 0 for a single block."""

    @classmethod
    def read(cls, file: Path) -> "KeptPlan":
        """A plan that was saved.

        Args:
            file: JSON, or a folder with plan.json in it.

        Raises:
            UserError: It is no plan.
        """
        file = file / "plan.json" if file.is_dir() else file
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            plan = cls(values["weights"], values["layers"], values["errors"])
            names = [*plan.weights.items(), *plan.layers.items()]
            if plan.weights.keys() != plan.layers.keys() or not all(isinstance(x, str) for pair in names for x in pair):
                raise ValueError("weights and layers are of different blocks")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"{file}: wanted a plan of dit-shd depth, found none ({reason})") from error
        return plan

    def text(self) -> str:
        """The plan as JSON."""
        return json.dumps({"weights": self.weights, "layers": self.layers, "errors": self.errors}, indent=1) + "\n"

    def lines(self) -> Iterator[str]:
        """The plan in words."""
        for block, source in self.weights.items():
            last = self.layers[block]
            error = self.errors[block]
            yield f"{block} from {source}" + (f", learns from {last} ({error:.4f} unexplained)" if error else "")

    def pairs(self, teacher: Sequence[str], student: Sequence[str]) -> dict[str, str]:
        """Student layer -> teacher layer, of blocks or of layers inside of them.

        Args:
            teacher: Names of its layers.
            student: Names of its layers.

        Raises:
            UserError: No layer is in a block of the plan, or the teacher lacks one.
        """
        pairs: dict[str, str] = {}
        for name in student:
            block = next((b for b in self.layers if name == b or name.startswith((f"{b}.", f"{b}#"))), None)
            if block is None:
                continue
            source = self.layers[block] + name.removeprefix(block)
            if source not in teacher:
                raise UserError(f"layers: kept: the teacher has no layer '{source}'. It has: {', '.join(teacher)}")
            pairs[name] = source
        if not pairs:
            raise UserError(
                f"layers: kept: the plan is of {', '.join(self.layers)}; the student has {', '.join(student)}"
            )
        return pairs

"""A student of fewer blocks of its teacher: which blocks it keeps, and which it stands for (PPCL, arXiv 2511.16156)."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
            if not all(isinstance(error, (int, float)) for error in plan.errors.values()):
                raise ValueError("errors are not numbers")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"{file}: wanted a plan of dit-shd depth, found none ({reason})") from error
        return plan

    @classmethod
    def named(cls, rule: object) -> "KeptPlan | None":
        """The plan that a rule for layers names, kept:PLAN; None for another rule."""
        if not isinstance(rule, str) or not rule.startswith(KEPT):
            return None
        return cls.read(Path(rule.removeprefix(KEPT)).expanduser())

    def text(self) -> str:
        """The plan as JSON."""
        return json.dumps({"weights": self.weights, "layers": self.layers, "errors": self.errors}, indent=1) + "\n"

    def lines(self) -> Iterator[str]:
        """The plan in words."""
        for block, source in self.weights.items():
            last = self.layers[block]
            error = self.errors.get(block)
            yield f"{block} from {source}" + (f", learns from {last} ({error:.4f} unexplained)" if error else "")

    def check(self, student: Iterable[str]) -> None:
        """Refuse a student that has more or fewer blocks than the plan in a list of blocks that it names.

        Args:
            student: Names of its blocks, or of layers inside of them.

        Raises:
            UserError: Naming the list.
        """
        present = {self._block_of(name) for name in student}
        for of_list in self._lists:
            planned, actual = (
                {block for block in blocks if block and block.rpartition(".")[0] == of_list}
                for blocks in (self.layers, present)
            )
            if planned != actual:
                raise UserError(
                    f"kept: the plan is of a student of {len(planned)} {of_list}, this one has {len(actual)}; give it "
                    "as many, or make a plan for it (dit-shd depth keep=...)"
                )

    def pairs(self, teacher: Sequence[str], student: Sequence[str]) -> dict[str, str]:
        """Student layer -> teacher layer, of blocks or of layers inside of them.

        Layers in lists of blocks that the plan does not name, which are kept whole, learn from those of their names.

        Args:
            teacher: Names of its layers.
            student: Names of its layers.

        Raises:
            UserError: No layer is in a block of the plan, the student has other blocks, or the teacher lacks a layer.
        """
        pairs: dict[str, str] = {}
        for name in student:
            block = self._block_of(name)
            if block is None and name in teacher:
                pairs[name] = name
            if block is None or block not in self.layers:
                continue
            source = self.layers[block] + name.removeprefix(block)
            if source not in teacher:
                raise UserError(f"layers: kept: the teacher has no layer '{source}'. It has: {', '.join(teacher)}")
            pairs[name] = source
        if not any(self._block_of(name) for name in pairs):
            raise UserError(
                f"layers: kept: the plan is of {', '.join(self.layers)}; the student has {', '.join(student)}"
            )
        empty = [block for block, source in self.layers.items() if not any(_in(source, name) for name in teacher)]
        self.check([*student, *empty])
        return pairs

    @property
    def _lists(self) -> list[str]:
        """The lists of blocks that the plan names."""
        return list(dict.fromkeys(block.rpartition(".")[0] for block in self.layers))

    def _block_of(self, name: str) -> str | None:
        """The block that a layer is, or is in, of a list that the plan names."""
        matches = (re.match(rf"{re.escape(of_list)}\.\d+(?![^.#:])", name) for of_list in self._lists)
        return next((match[0] for match in matches if match), None)


def _in(block: str, name: str) -> bool:
    """Whether a layer is a block, or in it."""
    return name == block or name.startswith((f"{block}.", f"{block}#"))

"""Everything that only a GPU can show, by one command in under 8 minutes: a table of what was wanted and measured.

    python benchmarks/gpu.py [--out gpu] [--minutes 8] [--parts values kernels ...]
    python benchmarks/gpu.py --rehearse     # tiny, on a CPU, kernels in Triton's interpreter: the same path

Each part (gpu_parts.py) runs in a process of its own within a limit of time, so that one that fails, hangs or takes
the GPU with it is a row of the table, and the others go on. Nothing waits for the end: every row is written when it is
known, to OUT/rows.jsonl and OUT/table.md, and what the parts print to OUT/log.txt. The command ends with 1 if a part
failed or a ratio is not the one wanted.
"""

import argparse
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

MARK = "ROW "
"""What a part's line of output begins with, if it is a row."""
LIMITS = {
    "card": 30, "values": 70, "kernels 4096": 45, "kernels 256": 35, "attention 4096": 55, "attention 256": 55,
    "step 256": 45, "step 4096": 45, "kernels 1024": 35, "kernels 8192": 35, "sampling": 30, "tests": 150,
    "compiled 256": 150, "compiled 4096": 150, "sampling compiled": 120,
}  # fmt: skip
"""The parts in their order, what matters most first, and the seconds that each may take at most; what an H100 needs is
less. The compiled ones come last, since torch.compile takes what is left."""
REHEARSED = [part for part in LIMITS if part.endswith("256") or " " not in part]
"""One of each kind."""
STATES = {True: "yes", False: "**no**", None: ""}


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    part: str
    what: str
    value: float | None = None
    unit: str = ""
    wanted: str = ""
    """As "<= 2" or ">= 10"."""
    note: str = ""
    """An error, or what a number is of."""

    @property
    def met(self) -> bool | None:
        """Whether the value is the wanted one; None where nothing is wanted. An error is never."""
        if self.unit == "error":
            return False
        if not self.wanted or self.value is None:
            return None
        sign, limit = self.wanted.split()
        return self.value <= float(limit) if sign == "<=" else self.value >= float(limit)

    def line(self) -> str:
        value = "" if self.value is None else f"{self.value:.4g}"
        cells = (self.part, self.what, self.wanted, f"{value} {self.unit}".strip(), STATES[self.met], self.note)
        return f"| {' | '.join(cell.replace('|', '/').replace(chr(10), ' ') for cell in cells)} |"


@dataclass
class Table:
    """Rows as they come; the last one of a name counts."""

    folder: Path
    title: str
    rows: dict[tuple[str, str], Row] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        """Write a row at once."""
        self.rows[row.part, row.what] = row
        with (self.folder / "rows.jsonl").open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")
        head = f"{self.title}\n\n| part | what | wanted | measured | as wanted | note |\n|---|---|---|---|---|---|\n"
        draft = self.folder / "table.md.part"
        draft.write_text(head + "".join(row.line() + "\n" for row in self.rows.values()))
        draft.replace(self.folder / "table.md")
        print(row.line(), flush=True)

    @property
    def good(self) -> bool:
        """Whether everything is as wanted."""
        return all(row.met is not False for row in self.rows.values())


def follow(command: list[str], seconds: float, log: Callable[[str], object], env: dict[str, str]) -> Iterator[str]:
    """The lines that a command prints, until it ends or its time is up; then it and what it started are killed.

    Raises:
        RuntimeError: it failed, or ran out of time.
    """
    end = time.monotonic() + seconds
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, start_new_session=True
    )
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(process, lines), daemon=True).start()
    last = ""
    try:
        while True:
            try:
                line = lines.get(timeout=max(0.01, end - time.monotonic()))
            except queue.Empty:
                raise RuntimeError(f"stopped after {seconds:.0f} s; its last line: {last}") from None
            if line is None:
                break
            log(line)
            last = line.strip()[:300] or last
            yield line
        code = process.wait()
        if code:
            raise RuntimeError(f"ended with {code}; its last line: {last}")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its own group: what it left running, too
        process.wait()


def _read(process: subprocess.Popen[str], lines: "queue.Queue[str | None]") -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(None)


def run_part(part: str, command: list[str], seconds: float, table: Table, env: dict[str, str]) -> None:
    """One part: its rows, and one more if it fails."""
    with (table.folder / "log.txt").open("a") as log:
        log.write(f"== {part}: {' '.join(command)}\n")
        try:
            for line in follow(command, seconds, log.write, env):
                if line.startswith(MARK):
                    table.add(Row(part, **json.loads(line.removeprefix(MARK))))
        except Exception as error:  # whatever it is, the other parts go on
            table.add(Row(part, "the part itself", unit="error", note=str(error)))


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, default=Path("gpu"), help="folder of the results")
    options.add_argument("--minutes", type=float, default=8, help="for everything; what does not fit is a row, too")
    options.add_argument("--parts", nargs="+", choices=list(LIMITS), help="which; all by default")
    options.add_argument("--rehearse", action="store_true", help="tiny sizes on a CPU, kernels in the interpreter")
    args = options.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the part that runs ends with it
    args.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * args.minutes
    root = Path(__file__).parents[1]
    paths = os.pathsep.join([str(root), str(root / "tests"), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
    if args.rehearse:
        env |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    table = Table(args.out, f"{when}, `{' '.join(sys.argv)}`" + (", a rehearsal on a CPU" if args.rehearse else ""))
    for part in args.parts or (REHEARSED if args.rehearse else LIMITS):
        left = end - time.monotonic()
        if left < 5:
            table.add(Row(part, "the part itself", unit="error", note="not run: no time was left"))
            continue
        command = [sys.executable, str(Path(__file__).with_name("gpu_parts.py")), part]
        command += ["--rehearse"] if args.rehearse else []
        run_part(part, command, left if args.rehearse else min(left, LIMITS[part]), table, env)
    print(f"{args.out / 'table.md'}: {len(table.rows)} rows, {'all' if table.good else 'not all'} as wanted")
    return 0 if table.good or (args.rehearse and not _errors(table)) else 1


def _errors(table: Table) -> list[Row]:
    """In a rehearsal times say nothing, but nothing may fail."""
    return [row for row in table.rows.values() if row.unit == "error" or (row.part == "values" and row.met is False)]


if __name__ == "__main__":
    sys.exit(main())

"""Ways to break things: bytes, and values in nested configs."""

import pickle
import random
from pathlib import Path
from typing import Any

from . import PWNED

WEIRD: list[Any] = [
    None, [], {}, [[]], True, -1, 0, 10**30, 1e300, float("nan"), float("inf"), "", "nan", "1e-4", "../../x",
    "/etc/passwd",
    "os.system", "builtins.eval", "\x00", "é" * 300, {"name": "os.system"}, [{"name": 3}], {"": ""}, [None] * 50,
]  # fmt: skip


class Exploit:
    """Pickled, it writes a file when it is loaded."""

    def __reduce__(self) -> tuple:
        return (open, (PWNED, "w"))


def exploit(protocol: int = 2) -> bytes:
    return pickle.dumps({"weight": Exploit()}, protocol=protocol)


def bent_bytes(draw: random.Random, data: bytes) -> bytes:
    """Truncated, with bits flipped, a part zeroed or repeated, or with other bytes in front."""
    how = draw.randrange(6)
    at = draw.randrange(max(len(data), 1))
    if how == 0:
        return data[:at]
    if how == 1:
        found = bytearray(data)
        for _ in range(draw.choice([1, 8, 64])):
            found[draw.randrange(len(found))] ^= 1 << draw.randrange(8)
        return bytes(found)
    if how == 2:
        return data[:at] + bytes(min(64, len(data) - at)) + data[at + 64 :]
    if how == 3:
        return data[:at] + data[max(0, at - 100) : at] + data[at:]
    if how == 4:
        return draw.randbytes(draw.choice([0, 1, 16, 200])) + (data if draw.random() < 0.5 else b"")
    head = bytearray(data[:512])  # headers matter most
    for _ in range(4):
        head[draw.randrange(len(head))] = draw.randrange(256)
    return bytes(head) + data[512:]


def bend_file(draw: random.Random, file: Path) -> None:
    file.write_bytes(bent_bytes(draw, file.read_bytes()))


def bent_values(draw: random.Random, values: Any) -> Any:
    """Nested values with one of them replaced, dropped, renamed or wrapped."""
    if isinstance(values, dict) and values and draw.random() < 0.75:
        key = draw.choice(sorted(values, key=str))
        how = draw.randrange(6)
        if how == 0:
            return {k: v for k, v in values.items() if k != key}
        if how == 1:
            return {(f"{k}x" if k == key else k): v for k, v in values.items()}
        if how == 2:
            return {**values, draw.choice(["__class__", "runs", "0", "name.x"]): draw.choice(WEIRD)}
        return {**values, key: bent_values(draw, values[key])}
    if isinstance(values, list) and values and draw.random() < 0.7:
        at = draw.randrange(len(values))
        return [*values[:at], bent_values(draw, values[at]), *values[at + 1 :]]
    return draw.choice([*WEIRD, [values], {"x": values}, str(values)])

"""What the Triton kernels must do, by count: products, exponentials and bytes, and the least time on two cards.

    python benchmarks/roofline.py [--tokens 256 1024 4096 8192]

MDTv2-B/2 -> S/2 (12 heads into 6, width 64, bfloat16), nothing measured: counted from the loops of
dit_shd/attention/kernels and dit_shd/squeezing/kernels and from the sizes of their blocks (launch.py chooses those).
Bytes of a program are what it asks of the caches; those of a launch are what has to come from and go to the card's
memory once. A launch takes at least the longest of: products at the tensor cores' rate (dense, from data sheets),
exponentials at 16 a clock and multiprocessor, bytes at the memory's rate.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dit_shd.attention.kernels.blocks import Blocks
from dit_shd.squeezing.kernels.blocks import of_keys, of_rows

FLOAT, LOW = 4, 2
"""Bytes of a number in float32 and in bfloat16."""


@dataclass(frozen=True)
class Card:
    """Rates of a card, from its data sheet."""

    products: float
    """Multiply-adds a second of 16-bit tensor cores, dense."""
    exponentials: float
    """A second: multiprocessors x 16 x boost clock."""
    memory: float
    """Bytes a second."""


CARDS = {
    "A100": Card(312e12 / 2, 108 * 16 * 1.41e9, 2.04e12),
    "H100": Card(989e12 / 2, 132 * 16 * 1.98e9, 3.35e12),
}
"""A100 SXM 80 GB and H100 SXM."""


@dataclass(frozen=True)
class Layer:
    """Sizes of one attention layer of both models."""

    b: int
    n: int
    h: int = 12
    g: int = 6
    d: int = 64

    @property
    def k(self) -> int:
        """Teacher heads of a student head."""
        return self.h // self.g

    @property
    def window(self) -> int:
        """Tokens along one side of the grid."""
        return round(self.n**0.5)


@dataclass(frozen=True)
class Count:
    """One launch of a kernel."""

    kernel: str
    programs: int
    products: float
    """Multiply-adds of all programs."""
    exponentials: float
    asked: float
    """Bytes that all programs read from the caches."""
    least: float
    """Bytes that must be moved from and to memory once."""

    def bound(self, card: Card) -> tuple[float, str]:
        """The least seconds, and by what."""
        times = {
            "products": self.products / card.products,
            "exponentials": self.exponentials / card.exponentials,
            "memory": self.least / card.memory,
        }
        slowest = max(times, key=lambda name: times[name])
        return times[slowest], slowest


def counts(layer: Layer, bias: str = "none") -> list[Count]:
    """SHD's kernels on a layer, forward and backward: products, then the divergence.

    Args:
        layer: Sizes.
        bias: none, or relative for MDT's learnable table.
    """
    b, n, h, g, d, k = layer.b, layer.n, layer.h, layer.g, layer.d, layer.k
    pairs, dtype = b * n * n, torch.bfloat16
    x, row = b * n * d * LOW, b * n * FLOAT  # one head's tokens; one number of each of its rows
    values, sums = Blocks.of_values(d, d, k, dtype, bias), Blocks.of_values(d, d, 0, dtype, bias)
    rows, keys = of_rows(d, d, dtype, "kl", bias), of_keys(d, d, dtype, bias, k)
    found = [
        Count(
            "attend_values", b * h * _blocks(n, values.rows), h * pairs * (1 + k) * d, h * pairs,
            h * x * (1 + (1 + k) * _blocks(n, values.rows)), 3 * h * x + h * k * 2 * x + 2 * h * row,
        ),
        Count(
            "attend_values, no value", b * g * _blocks(n, sums.rows), g * pairs * d, g * pairs,
            g * x * (1 + _blocks(n, sums.rows)), 2 * g * x + 2 * g * row,
        ),
        Count(
            "divergence_rows", b * g * _blocks(n, rows.rows), pairs * (h + 2 * g) * d, pairs * (h + g),
            (h + g) * x * (1 + _blocks(n, rows.rows)), 2 * (h + g) * x + (2 * h + 4 * g) * row + g * 2 * x,
        ),
        Count(
            "divergence_keys", b * g * _blocks(n, keys.cols), pairs * (h + 2 * g) * d, pairs * (h + g),
            (h + g) * x * (1 + _blocks(n, keys.cols)), 2 * (h + g) * x + (2 * h + 3 * g) * row + g * 2 * x,
        ),
    ]  # fmt: skip
    if bias == "relative":
        found.append(_offsets("divergence_offsets", layer, pairs * (h + g) * d, pairs * (h + g), 2 * (h + g) * x))
    return found


def attention_counts(layer: Layer, heads: int, bias: str = "none") -> list[Count]:
    """A model's own attention by the kernels of this repository, forward and backward."""
    b, n, d, h = layer.b, layer.n, layer.d, heads
    pairs, dtype, x, row = b * n * n, torch.bfloat16, b * n * d * LOW, b * n * FLOAT
    values, blocks = Blocks.of_values(d, d, 1, dtype, bias), Blocks.of_gradients(d, d, dtype, bias)
    key_blocks = Blocks.of_key_gradients(d, d, dtype, bias)
    found = [
        Count(
            "attend_values", b * h * _blocks(n, values.rows), h * pairs * 2 * d, h * pairs,
            h * x * (1 + 2 * _blocks(n, values.rows)), 4 * h * x + 2 * h * row,
        ),
        Count(
            "attention_rows", b * h * _blocks(n, blocks.rows), h * pairs * 3 * d, h * pairs,
            h * x * (2 + 2 * _blocks(n, blocks.rows)), 5 * h * x + 3 * h * row,
        ),
        Count(
            "attention_keys", b * h * _blocks(n, key_blocks.cols), h * pairs * 4 * d, h * pairs,
            h * x * (2 + 2 * _blocks(n, key_blocks.cols)), 6 * h * x + 3 * h * row,
        ),
    ]  # fmt: skip
    if bias == "relative":
        found.append(_offsets("attention_offsets", layer, h * pairs * 2 * d, h * pairs, 4 * h * x, heads))
    return found


def _offsets(
    kernel: str, layer: Layer, products: float, exponentials: float, read: float, heads: int | None = None
) -> Count:
    heads, w = heads or layer.g, layer.window
    written = layer.b * heads * w * (2 * w - 1) * w * FLOAT
    return Count(kernel, layer.b * heads * (2 * w - 1), products, exponentials, read * w, read + written)


def own_attention(layer: Layer) -> list[Count]:
    """What both models' attention costs anyway: flash attention, the teacher's forward, the student's both ways."""
    x, pairs = layer.b * layer.n * layer.d * LOW, layer.b * layer.n**2
    forward = [
        Count(f"flash forward, {heads} heads", 0, heads * pairs * 2 * layer.d, heads * pairs, 0, 4 * heads * x)
        for heads in (layer.h, layer.g)
    ]
    return [*forward, Count("flash backward", 0, layer.g * pairs * 5 * layer.d, layer.g * pairs, 0, 8 * layer.g * x)]


def seconds(found: Sequence[Count], card: Card) -> float:
    """The least time of launches one after another."""
    return sum(count.bound(card)[0] for count in found)


def _blocks(n: int, size: int) -> int:
    return -(-n // size)


BATCH = {256: 32, 1024: 8, 4096: 2, 8192: 1}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tokens", type=int, nargs="+", default=sorted(BATCH), choices=sorted(BATCH))
    print("| tokens, batch | kernel | programs | products | exponentials | asked, MiB | least, MiB | A100 | H100 |")
    print("|---|---|---|---|---|---|---|---|---|")
    for n in options.parse_args().tokens:
        layer = Layer(BATCH[n], n)
        bias = "relative" if layer.window**2 == n else "none"
        table = {"SHD": counts(layer, bias), "the student's attention": attention_counts(layer, layer.g, bias)}
        for what, found in table.items():
            for count in found:
                each = max(1, count.programs)
                bounds = " | ".join(f"{1e3 * s:.3f} ms, {by}" for s, by in map(count.bound, CARDS.values()))
                print(
                    f"| {n}, {layer.b} | {what}: {count.kernel} | {count.programs} | {count.products / each:.3g} each, "
                    f"{count.products:.3g} | {count.exponentials / each:.3g} each | {count.asked / each / 2**20:.2f} "
                    f"each, {count.asked / 2**20:.0f} | {count.least / 2**20:.0f} | {bounds} |"
                )
        for name, card in CARDS.items():
            ratio = seconds(counts(layer), card) / seconds(own_attention(layer), card)
            print(f"| {n}, {layer.b} | SHD of own attention without a bias, {name} | | | | | | {ratio:.2f} | |")


if __name__ == "__main__":
    main()

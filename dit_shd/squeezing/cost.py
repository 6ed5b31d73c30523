"""Operations and memory of SHD beside both models' forwards and backwards, from the shapes of a layer's captures.

For the streamed algorithms of products.py and backends/streamed.py. Multiply-adds of a group of k teacher heads of
width d, at n query rows and m keys: scores k n m d; differences of maps times values (k-1) k n m d; the factors of W^O,
of f = min(k d, e) columns, k n d f and (k-1) k n d f, less what is zero of a triangle; their inner products, at most
((k-1) k)^2 n f. Then the divergence: the group's scores once more, unless its maps were kept, and, for the student's
head of width d_s, scores and two gradients, 3 n m d_s. Systems of k x k are not counted.
"""

from dataclasses import dataclass

from dit_shd.attention.capture import Capture
from dit_shd.attention.tiles import CHUNK_MIB
from dit_shd.squeezing.plans import Plan
from dit_shd.squeezing.squeeze import can_keep


@dataclass(frozen=True)
class LayerCost:
    """Operations and memory of a loss beside both models' forwards and backwards."""

    operations: float = 0.0
    """Floating-point operations; a multiply-add counts as two."""
    held: int = 0
    """Bytes kept for the backward."""
    scratch: int = 0
    """Bytes of temporary memory."""

    def __add__(self, other: "LayerCost") -> "LayerCost":
        return LayerCost(self.operations + other.operations, self.held + other.held, max(self.scratch, other.scratch))


FLOAT = 4


def layer_cost(
    teacher: Capture,
    student: Capture,
    plan: Plan,
    images: int,
    method: str = "pairwise",
    rows: float = 1.0,
    temperature: float = 1.0,
    chunk_mib: float = CHUNK_MIB,
) -> LayerCost:
    """Cost of one layer.

    Args:
        teacher: Capture of one image.
        student: Capture of one image.
        plan: The groups of teacher heads.
        images: Number of images.
        method: As in squeeze.
        rows: Share of the query rows, as in SHD.
        temperature: As in attention_kl.
        chunk_mib: Memory budget for maps, in MiB.
    """
    _, h, n, m = teacher.shape
    n = n if rows == 1 else max(1, round(rows * n))
    d, d_student = teacher.query.shape[3], student.query.shape[3]
    has_alpha = method not in ("constant", "hard") and student.heads < h
    keeps = has_alpha and temperature == 1 and can_keep((images, h, n, m), chunk_mib)
    total = 0
    for group in plan:
        k = len(group)
        if has_alpha and k > 1:
            total += _alpha(teacher, k, n, method == "per_query")
        if not (keeps and k > 1):
            total += k * n * m * d
        total += 3 * n * m * d_student
    maps = FLOAT * images * h * n * m if keeps else 0
    return LayerCost(
        operations=2 * total * images,
        held=FLOAT * images * (n * student.heads * d_student + student.key[0].numel()),
        scratch=int(chunk_mib * 2**20) + maps,
    )


def _alpha(teacher: Capture, k: int, n: int, per_row: bool) -> int:
    """Multiply-adds of one group's weights for one image."""
    m, d, d_value = teacher.shape[3], teacher.query.shape[3], teacher.value.shape[3]
    f, less = min(k * d_value, _columns(teacher)), k - 1
    outputs = 0 if teacher.mixed is not None else k * n * m * d_value
    starts = range(0, f, d_value)
    filled = sum((k * d_value - start) * min(d_value, f - start) for start in starts)  # of the factor's entries
    if per_row:
        factors, inner = filled + (k + 1) * less * d_value * f, less * (less + 1) * f
    else:
        of_run = (((k - a) * less) ** 2 * min(d_value, f - start) for a, start in enumerate(starts))
        factors, inner = k * filled, sum(of_run)
    return k * n * m * d + outputs + less * k * n * m * d_value + n * (factors + inner)


def _columns(teacher: Capture) -> int:
    """e of W^O; of a square one where there is none (behind a gate, or on the meta device)."""
    return teacher.heads * teacher.value.shape[3] if teacher.out is None else teacher.out.shape[2]

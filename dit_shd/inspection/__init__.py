"""What a model costs, and what its attention does: the numbers behind a page, without any drawing.

cost.py: one forward pass; comparison.py: a teacher and its students (the demo's page); inputs.py and survey.py: any
model by itself (`dit-shd inspect`).
"""

from dit_shd.inspection.comparison import (
    AttentionRows,
    LayerSqueeze,
    attention_rows,
    inkiest_token,
    noised,
    squeeze_statistics,
)
from dit_shd.inspection.cost import Cost, cost

__all__ = [
    "AttentionRows",
    "Cost",
    "LayerSqueeze",
    "attention_rows",
    "cost",
    "inkiest_token",
    "noised",
    "squeeze_statistics",
]

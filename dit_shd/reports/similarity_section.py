"""The section of a page that shows how similar the heads of each layer are, and which plans follow from it."""

from collections.abc import Sequence

from dit_shd.analysis.survey import LayerSurvey
from dit_shd.reports.figures.alpha import short_layer
from dit_shd.reports.figures.chart import chart_row
from dit_shd.reports.figures.heads import lowest_cosine, similarity_charts
from dit_shd.reports.figures.heat import bar
from dit_shd.reports.html import paragraph, section
from dit_shd.reports.inspection_findings import mean_inside
from dit_shd.reports.tables import number, table_html
from dit_shd.squeezing.plans import Plan

HEADINGS = [
    ("layer", ""), ("contiguous", "groups"), ("cosine", "mean inside"), ("matched", "groups"),
    ("cosine", "mean inside"), ("gain", "matched"),
]  # fmt: skip


def similarity_section(layers: Sequence[LayerSurvey], over: str) -> str:
    """Charts of the cosines of heads, and a table of the contiguous and the matched plan.

    Args:
        layers: The layers of the model.
        over: What the cosines are of, as "all samples".
    """
    words = (
        f"The cosine of every two heads' maps, over {over}. Frames: the contiguous merge plan, neighbouring heads. "
        "Dots: the matched plan, groups of the same sizes with the largest similarity inside "
        "(losses: [{name: shd, plan: matched}] computes one in training)."
    )
    cells = []
    for layer in layers:
        inside = [mean_inside(layer.cosines, plan) for plan in (layer.plan, layer.matched)]
        texts = ["none" if value is None else number(value) for value in inside]
        gain = "" if None in inside else f"{inside[1] - inside[0]:.3f}"  # type: ignore[operator]
        cells.append(
            [short_layer(layer.layer), plan_words(layer.plan), texts[0], plan_words(layer.matched), texts[1], gain]
        )
    low = lowest_cosine(layers)
    scale = bar((f"{low:g}", f"{(low + 1) / 2:.2g}", "1"), "cosine")
    table = table_html(HEADINGS, cells, tinted=-1, what="merge plans by layer")
    return section("Similar heads", paragraph(words), chart_row(similarity_charts(layers), small=True), scale, table)


def plan_words(plan: Plan) -> str:
    """A plan as text: 0+1, 2+3."""
    return ", ".join("+".join(map(str, group)) for group in plan)

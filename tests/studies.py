"""Studies for tests, whose commands are those of the stand-in."""

from pathlib import Path

from dit_shd.study.runner import Runner

STAND_IN = Path(__file__).parent / "study" / "stand_in.py"
LOSSES = [{"name": "output"}, {"name": "shd", "weight": 0.5}]
VALUES = {
    "title": "Two losses",
    "config": "base.yaml",
    "grid": {"loss": {"output": {}, "shd": {"losses": LOSSES}}},
    "seeds": [1, 2],
    "evaluators": {"first": {"features": "digits", "reference": "digits:validation"}},
    "baseline": {"loss": "output"},
}


def run(config):
    """The results of a study by the cell's name, and what was said."""
    said = []
    progress = Runner(config, said.append).run()
    return {cell.name: row for cell, row in progress.results.items()}, said


def calls():
    file = Path("calls")
    return [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []

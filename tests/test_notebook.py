"""The notebook runs from its first cell to its last, and what it says of itself is so."""

import re

import nbformat
from nbclient import NotebookClient


def test_the_notebook_runs_and_the_maps_come_nearer(root, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(root))
    notebook = nbformat.read(root / "examples" / "attention_of_two_models.ipynb", as_version=4)
    assert not [cell for cell in notebook.cells if cell.get("outputs")], "outputs are made, and not kept"
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(root)}}).execute()
    printed, shown = "", []
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        assert output.output_type != "error"
        printed += output.get("text", "")
        shown += list(output.get("data", {}))
    before, after = map(float, re.search(r"attention KL: ([\d.]+) at first, ([\d.]+) after 20 steps", printed).groups())
    assert 0 < after < 0.8 * before
    assert shown.count("image/svg+xml") == 2 and shown.count("image/png") == 1
    assert len(re.findall(r"alpha \[(?:0\.\d+(?:, )?){2}\]", printed)) == 3, "two merges in each of three layers"

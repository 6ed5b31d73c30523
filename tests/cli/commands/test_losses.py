"""The list of losses names every loss with what it reads, needs and costs; the page is made of the same."""

import importlib.util

import pytest

from dit_shd.cli import program
from dit_shd.distillation.losses import LOSSES, Needs, alternatives
from dit_shd.distillation.losses.tinybert import TinyBERT
from dit_shd.profiling.loss_table import UNCOUNTED, loss_table
from dit_shd.tasks.diffusion import Diffusion

PLAIN = Diffusion(mask_ratio=None)


@pytest.fixture(scope="module")
def entries():
    return {entry.name: entry for entry in loss_table(PLAIN)}


def test_every_loss_says_what_it_is(entries):
    assert list(entries) == LOSSES.names() and len(entries) >= 18
    for entry in entries.values():
        assert entry.paper.startswith("arXiv ") and entry.reads and entry.summary
        assert (entry.share is None) == (entry.name in UNCOUNTED)


def test_costs_are_counted(entries):
    """Linear maps of 12 layers by hand; SHD by its formula; nothing for losses of predictions."""
    assert entries["feature"].parameters == 12 * (384 * 768 + 768)
    assert entries["vkd"].parameters == 384 * 768
    assert entries["align_to_distill"].parameters == 12 * 6 * 144
    assert entries["output"].share == entries["lift"].share == 0
    by_share = sorted((entry.share, name) for name, entry in entries.items() if entry.share)
    assert all(0 < share < 0.6 for share, _ in by_share), by_share
    ratio = entries["masked_feature"].share / entries["feature"].share
    assert ratio == pytest.approx(1)
    assert entries["feature"].share == pytest.approx(3 * 2 * 256 * 12 * 384 * 768 / _step(), rel=0.01)


def _step():
    """Operations of both models in a plain pass of one image, with the share of shd."""
    from dit_shd.core.plugins import Plugin
    from dit_shd.profiling import meta
    from dit_shd.profiling.flops import step_operations
    from dit_shd.profiling.step import StepShape

    models = [meta.build(Plugin("mdt", {"size": size}), "model") for size in ("S/2", "B/2")]
    step = StepShape(PLAIN, [LOSSES.find("output")()], 1, lambda _: None, "none")
    return step_operations(step, *models).total


def test_the_command_prints_them(entries, capsys, monkeypatch):
    counted_for = []

    def table(task, *pair):
        counted_for.append(pair)
        return list(entries.values())

    monkeypatch.setattr("dit_shd.cli.commands.losses.loss_table", table)
    assert program.main(["losses", "teacher=XL/2", "sample_size=64"]) == 0
    assert counted_for == [("S/2", "XL/2", 64, LOSSES.names())]
    out = capsys.readouterr().out
    assert program.main(["losses", "kd"]) == 0
    assert counted_for[1:] == [("S/2", "B/2", 32, ["kd"])]
    assert all(f"\n{name} " in out for name in LOSSES.names())
    assert "arXiv 2502.07436" in out and "equal heads" in out


def test_the_page_is_made_of_the_same(root, entries, monkeypatch):
    monkeypatch.setattr("dit_shd.profiling.loss_table.loss_table", lambda task: list(entries.values()))
    spec = importlib.util.spec_from_file_location("docs_build", root / "docs" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.losses_page() == (root / "docs" / "losses.md").read_text(), "run: make docs"


def test_what_needs_equal_heads_names_what_does_not():
    names = alternatives(TinyBERT, Needs.EQUAL_HEADS).split(", ")
    assert names == ["align_to_distill", "head_mean", "minilmv2", "shd"]

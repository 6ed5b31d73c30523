"""The page of runs, from the logs of real ones, whole or half written, finished or not."""

import html
import json
import math
import re
import shutil
import socket
from dataclasses import replace

import pytest
from pages import words_of
from small_runs import tiny

from dit_shd.cli.commands import plot as plot_command
from dit_shd.cli.commands.plot import PlotConfig, is_training, plot, read_log
from dit_shd.cli.program import main
from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.core.lock import LOCK, Lock
from dit_shd.reports.html import page_html
from dit_shd.reports.run_page import by_layer, findings, merges_of, shared_terms
from dit_shd.training.config import TrainConfig
from dit_shd.training.trainer import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of four steps."""
    folder = tmp_path_factory.mktemp("plotted")
    list(train(make(TrainConfig, tiny(folder), "config")))
    return folder / "run"


def test_each_merge_is_logged_and_their_mean_is_that_of_the_layer(run):
    log = read_log("x", run)
    layers = by_layer(log, "alpha")
    assert next(iter(layers.values())) == "en_inblocks.0.attn"
    assert len(layers) == 4
    for key in layers:
        merges = merges_of(log, key)
        assert list(merges.values()) == ["0|1", "2|3"]
        for row in log.metrics:
            assert row[key] == pytest.approx(sum(row[merge] for merge in merges) / 2, abs=1e-6)


def test_the_page_of_a_real_run_says_how_far_it_is(run, capsys):
    assert main(["plot", str(run)]) == 0
    assert f"done: {run / 'plot.html'}" in capsys.readouterr().out
    page = (run / "plot.html").read_text()
    words = words_of(page)
    assert "run is done; its loss went from" in words
    for heading in ("Loss", "Divergence by layer", "Alpha by layer", "Pace and memory"):
        assert f"<h2>{heading}</h2>" in words
    assert "data-reload" not in page.partition("<body")[2].partition(">")[0]
    assert words.count(">0|1</text>") == 4, "each merge of each layer by itself"
    assert plot(make(PlotConfig, {"runs": [str(run)]})) == run / "plot.html", "its own page is written anew"


def test_a_line_that_is_being_written_is_left_out(run, tmp_path):
    (tmp_path / "config.yaml").write_text("steps: 9\n")
    assert findings([read_log("y", tmp_path)]) == ["y: no step is logged yet, of 9."]
    broken = replace(read_log("y", tmp_path), metrics=[{"step": step, "loss": math.nan} for step in (2, 4)])
    assert findings([broken]) == ["y: its loss is not finite from step 2 on, of 9."]
    text = (run / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 5, "lo')
    log = read_log("y", tmp_path)
    assert log.step == 4
    assert findings([log])[0].startswith("y is at step 4 of 9; its loss went from")
    assert set(shared_terms([log])) >= {"loss", "plain/noise", "plain/shd", "masked/noise"}
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 5, "loss": NaN}\n{"step": 6, "loss": NaN}\n')
    assert findings([read_log("y", tmp_path)])[0].endswith(", and is not finite after step 4.")


def test_the_command_that_goes_on_can_be_pasted(run, tmp_path):
    folder = tmp_path / "a b"
    folder.mkdir()
    for name in ("config.yaml", "metrics.jsonl"):
        (folder / name).write_text((run / name).read_text())
    assert main(["plot", str(folder)]) == 0
    assert f"dit-shd train '{folder / 'config.yaml'}'" in html.unescape((folder / "plot.html").read_text())


def test_it_goes_on_while_the_run_trains(run, tmp_path, monkeypatch, capsys):
    for name in ("config.yaml", "metrics.jsonl"):
        (tmp_path / name).write_text((run / name).read_text())
    assert not is_training(tmp_path)
    lock = Lock(tmp_path / LOCK, "dit-shd train")
    assert is_training(tmp_path)
    waits = []

    def wait(seconds):
        waits.append((seconds, (tmp_path / "plot.html").read_text()))
        if len(waits) == 2:
            lock.release()

    monkeypatch.setattr(plot_command.time, "sleep", wait)
    page = plot(make(PlotConfig, {"runs": [str(tmp_path)], "every": 3}))
    assert [seconds for seconds, _ in waits] == [3, 3]
    assert all('<body data-reload="3">' in text for _, text in waits)
    assert "<body>" in page.read_text()
    assert "open it; it is written anew every 3 seconds" in capsys.readouterr().out


def test_what_a_dead_process_left_is_no_training(tmp_path):
    (tmp_path / LOCK).write_text(json.dumps({"what": "x", "pid": 2**22 + 1, "host": "h", "start": 1, "since": 1.0}))
    assert is_training(tmp_path), "another host's: it still gives signs of life"
    holder = {"what": "x", "pid": 2**22 + 1, "host": socket.gethostname(), "start": 1, "since": 1.0}
    (tmp_path / LOCK).write_text(json.dumps(holder))
    assert not is_training(tmp_path)


def test_what_else_lies_in_a_run_is_passed_over(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "evaluations").mkdir(exist_ok=True)
    (tmp_path / "run" / "evaluations" / "step_best.png").write_bytes(b"")
    (tmp_path / "run" / "evaluations" / "step_00000099.png").write_bytes(b"half")
    with open(tmp_path / "run" / "metrics.jsonl", "a") as lines:
        lines.write("[1]\n")
    config = (tmp_path / "run" / "config.yaml").read_text()
    before, after = read_log("run", run), read_log("run", tmp_path / "run")
    assert after.metrics == before.metrics and list(after.samples) == [*before.samples, 99]
    assert "Not readable: run, step 99." in plot(make(PlotConfig, {"runs": [str(tmp_path / "run")]})).read_text()
    (tmp_path / "run" / "config.yaml").write_text(re.sub(r"(?m)^steps: .*$", "steps: null", config))
    assert read_log("run", tmp_path / "run").steps == 0


def test_what_cannot_be_plotted_is_said(run, tmp_path):
    for values, message in (
        ({"runs": [str(tmp_path)]}, "wanted a run folder"),
        ({"runs": [str(run)], "every": 0}, "every: wanted 1 or more, found 0"),
        ({"runs": [str(run), str(run)]}, "runs: wanted each run once"),
        ({"runs": [str(run)], "out": str(tmp_path)}, "found a folder"),
    ):
        with pytest.raises(UserError, match=message):
            plot(make(PlotConfig, values))
    other = page_html("dit_shd: 2 models side by side", [])
    for mine in ("mine", other):
        (tmp_path / "mine.html").write_text(mine)
        with pytest.raises(UserError, match="holds something else"):
            plot(make(PlotConfig, {"runs": [str(run)], "out": str(tmp_path / "mine.html")}))
        assert (tmp_path / "mine.html").read_text() == mine


def test_the_logs_of_a_run_are_never_replaced_by_its_page(run):
    before = (run / "metrics.jsonl").read_bytes()
    for name in ("metrics.jsonl", "config.yaml"):
        with pytest.raises(UserError, match="is what is read here, and would be lost"):
            plot(make(PlotConfig, {"runs": [str(run)], "out": run / name, "force": True}))
    assert (run / "metrics.jsonl").read_bytes() == before

"""The page of a study: with nothing to compare, and where a file lies already."""

from studies import calls

from dit_shd.cli.commands.study import show
from dit_shd.cli.program import main
from dit_shd.study.runner import Runner


def test_a_study_that_compares_nothing_has_its_tables_and_page(study, capsys):
    """Of tuning, say, without baseline and claims: it ended in a TypeError when all cells had ended."""
    config = study(baseline={})
    runner = Runner(config, lambda line: None)
    show(runner, runner.run())
    page = config.study.with_suffix(".html").read_text()
    assert "4 of 4 cells have ended" in capsys.readouterr().out
    assert "<h2>Variants" in page and "<h2>Differences" not in page


def test_a_file_of_somebody_else_where_the_page_goes_is_not_overwritten(study, capsys):
    config = study()
    page = config.study.with_suffix(".html")
    page.write_text("my notes")
    assert main(["study", str(config.study)]) == 2 and not calls()
    assert "holds something else; move it" in capsys.readouterr().err and page.read_text() == "my notes"
    page.unlink()
    page.mkdir()
    assert main(["study", str(config.study)]) == 2 and "holds something else; move it" in capsys.readouterr().err
    page.rmdir()
    assert [main(["study", str(config.study)]) for _ in range(2)] == [0, 0]

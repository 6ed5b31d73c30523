"""Jobs as child processes."""

from dit_shd.cli.child_processes import ChildProcess, run_jobs


def test_every_job_runs_also_those_that_wait_for_another(tmp_path):
    logs = [tmp_path / name / "job.log" for name in "abc"]
    run_jobs([ChildProcess(log.parent.name, ["--version"], log, 1, "step", lambda: 0) for log in logs], "jobs")
    assert all(log.read_text().strip() for log in logs)

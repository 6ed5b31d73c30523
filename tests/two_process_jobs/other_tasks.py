"""The cases that tasks.py leaves to the slow tests."""

from task_cases import CASES

from two_process_jobs import tasks

NAMES = tuple(name for name in CASES if name not in tasks.NAMES)


def prepare(folder):
    tasks.prepare(folder, NAMES)


def work(folder):
    tasks.work(folder, NAMES)

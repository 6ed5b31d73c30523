"""The runs that training.py leaves to the slow tests."""

from two_process_jobs import training

NAMES = "projectors", "teachers", "sharded_hints", "sharded_teachers"


def prepare(folder):
    training.prepare(folder, NAMES)


def work(folder):
    training.work(folder, NAMES)

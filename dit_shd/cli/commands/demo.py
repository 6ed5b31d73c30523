"""Distillation on real digits from start to end: train students, sample, evaluate, write report.html.

task=digits, class-conditional:

    the teacher that ships with the package -> two students from random weights, with and without SHD, and one from
    the teacher's weights -> images of all four -> FD(digits), IS, precision, recall -> one page

The first two are a controlled comparison: short on purpose, and alike but for the loss. The third shows what a student
of this size can do in the same time.

task=text, text to image:

    digits with captions ("two digits: four and seven") encoded by the pipeline that ships with the package -> half
    the blocks of its transformer (SD3's kind): cut out and left so; distilled by output and SHD -> pictures of
    prompts that were not trained, teacher and students side by side -> how many show what was asked

Its folder (with files of the usual formats, so that all other commands work on them):

    settings.json  the settings                    output/, shd/, ...    run folders of students; cut/, a model's
    results.json   the figures                     samples/              images of the models
    seconds.json   the duration of each stage      logs/                 output of the child processes
    report.html    the page                        rows.png              a row of each model's first images
    images/, latents/, prompts.txt                 of text: the pictures with captions, encoded; what is sampled
"""

from dit_shd.cli import digits_demo, text_demo
from dit_shd.cli.commands import Command
from dit_shd.cli.demo_folder import DemoConfig


class RunDemo(Command[DemoConfig]):
    """Distillation on real digits from start to end."""

    config = DemoConfig

    def run(self, config: DemoConfig) -> None:
        run = text_demo.demo if config.task == "text" else digits_demo.demo
        run(config)

"""The command line: `dit-shd encode | convert | train | sample | evaluate | statistics | compare | inspect | demo`.

Errors a user can cause are one line and exit code 2. A signal ends a command with 128 and its number: 130 for Ctrl-C,
143 for SIGTERM, 138 for SIGUSR1. Training first finishes its step and saves; a second Ctrl-C ends it at once.
"""

import argparse
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dit_shd.core.distributed import leave_group
from dit_shd.core.errors import UserError

CONVERT = """Convert checkpoints: MDTv2 and DiT, public files or training checkpoints, to model folders and back.

  dit-shd convert DiT-XL-2-256x256.pt dit_xl2            a folder for teacher=, sample, inspect
  dit-shd convert 0400000.pt dit weights=model heads=8   of a training checkpoint; heads of an unusual width
  dit-shd convert facebook/DiT-XL-2-256 dit_xl2          diffusers' layout, from the hub (or a folder here)
  dit-shd convert runs/shd student.safetensors           and back, to the public code's names

No code in a file is ever run. Sizes are read from the tensors. What is written has a card with the licence it inherits.
(SiT files look the same as DiT's and are not: SiT predicts velocity.)"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(argv)
    from dit_shd.core import plugins
    from dit_shd.core.signals import Stopped, terminable

    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("dit_shd").setLevel(logging.INFO)
    for package in options.trust:
        plugins.trust(package)
    try:
        with terminable():
            options.run(options)
    except Stopped as stopped:
        print(f"dit-shd {options.command}: {stopped}", file=sys.stderr)
        return stopped.code
    except UserError as error:
        print(f"dit-shd {options.command}: {error}", file=sys.stderr)
        return 2
    except (OSError, MemoryError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"dit-shd {options.command}: {reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"\ndit-shd {options.command}: interrupted; the same command goes on from what is saved",
            file=sys.stderr,
        )
        return 130
    finally:
        leave_group()
    return 0


class _Help(argparse.Action):
    """--help of one command: the words, then every key with its default (imported only now)."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, nargs=0, **kwargs)

    def __call__(self, parser: Any, *_: Any) -> None:
        from dit_shd.core.config import explain

        module, _, name = parser.get_default("keys").rpartition(".")
        cls = getattr(__import__(module, fromlist=[name]), name)
        parser.epilog = f"keys (key=value; dots reach inside, as optimizer.lr=1e-4; values are YAML):\n{explain(cls)}"
        parser.print_help()
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dit-shd",
        description="Distil diffusion transformers: train, sample, evaluate. Start with: dit-shd demo",
    )
    parser.add_argument("--version", action=_Version, help="print the version and leave")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Any, keys: str, first: str | None, words: str, first_words: str = "") -> None:
        sub = commands.add_parser(
            name,
            usage=f"%(prog)s [--trust PACKAGE] {f'{first} ' if first else ''}[key=value ...]",
            help=words.partition("\n")[0],
            description=words,
            add_help=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.add_argument("-h", "--help", action=_Help, help="this text")
        sub.add_argument("--trust", action="append", default=[], metavar="PACKAGE", help="allow plug-ins of PACKAGE")
        if first:
            several = "+" if first.endswith("...") or " " in first else None
            sub.add_argument("first", metavar=first.rstrip("."), nargs=several, help=first_words)
        sub.add_argument("assignments", nargs="*", metavar="key=value", help="settings, see below")
        sub.set_defaults(run=run, keys=keys)

    add(
        "encode", _encode, "dit_shd.data.encoding.EncodeConfig", None,
        "Encode images=FOLDER into latent shards out=LATENTS to train on; the same command again resumes and verifies.",
    )  # fmt: skip
    add(
        "train", _train, "dit_shd.training.config.TrainConfig", "CONFIG",
        "Train a model, plainly or by distillation; the same command again resumes.", "a YAML file, see configs/",
    )  # fmt: skip
    add(
        "sample", _sample, "dit_shd.diffusion.sample_config.SampleConfig", "RUN",
        "Sample images into one npz (arr_0 uint8 NHWC, arr_1 labels) and a grid.", "run or model folder",
    )  # fmt: skip
    add(
        "evaluate", _evaluate, "dit_shd.evaluation.evaluate.EvaluateConfig", "SAMPLES...",
        "Score samples against a reference: FID or FD, sFID, IS, KID, precision, recall, density, coverage.",
        "npz or folder of images; several are scored one by one, with mean and spread",
    )  # fmt: skip
    add(
        "statistics", _statistics, "dit_shd.evaluation.reference_statistics.StatisticsConfig", "IMAGES",
        "Write the statistics of a set of images, a reference for evaluate.", "npz or folder of images",
    )  # fmt: skip
    add(
        "compare", _compare, "dit_shd.cli.commands.compare.CompareConfig", "RESULTS...",
        "One page of several evaluations: cost beside figures, images side by side.",
        "results files of evaluate, the teacher's first",
    )  # fmt: skip
    add(
        "inspect", _inspect, "dit_shd.analysis.inspect.InspectConfig", "MODEL",
        "Show a model's attention: maps, similarity of heads, merge plans, alpha by layer and timestep; a page.",
        "run, diffusers transformer folder or asset:NAME",
    )  # fmt: skip
    add(
        "convert", _convert, "dit_shd.models.conversion.ConvertConfig", "FILE OUT",
        CONVERT, "a checkpoint file, model folder, run or the hub's OWNER/NAME; and what to write",
    )  # fmt: skip
    add(
        "demo", _demo, "dit_shd.cli.commands.demo.DemoConfig", None,
        "The whole main job on real digits: distil two students, sample, evaluate, write report.html.",
    )  # fmt: skip
    return parser


class _Version(argparse.Action):
    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, nargs=0, **kwargs)

    def __call__(self, parser: Any, *_: Any) -> None:
        from dit_shd import __version__

        print(f"dit-shd {__version__}")
        parser.exit()


def _values(options: argparse.Namespace, **given: Any) -> dict[str, Any]:
    from dit_shd.core.yaml_files import override

    return override(given, options.assignments)


def _encode(options: argparse.Namespace) -> None:
    from dit_shd.core.config import make
    from dit_shd.data.encoding import EncodeConfig, encode_to_shards

    config = make(EncodeConfig, _values(options), "encode")
    latents = encode_to_shards(config)
    if int(os.environ.get("RANK", "0")):  # under a launcher one process speaks
        return
    told = f"{len(latents)} images in {len(latents.classes)} classes, latents of shape {list(latents.shape)}"
    print(f"done: {config.out}: {told}\nnext: dit-shd train CONFIG data='{{name: latents, path: {config.out}}}'")


def _train(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from dit_shd.core.config import make
    from dit_shd.core.signals import Stopped
    from dit_shd.core.yaml_files import override, read_yaml
    from dit_shd.training.config import TrainConfig
    from dit_shd.training.trainer import Trainer

    config = make(TrainConfig, override(read_yaml(Path(options.first)), options.assignments))
    if config.dry_run:
        from dit_shd.reports.dry_run import dry_run_text
        from dit_shd.training.dry_run import dry_run

        found = dry_run_text(dry_run(config))
        if int(os.environ.get("RANK", "0")) == 0:
            print(found)
        return
    trainer = Trainer(config)
    main_process = trainer.accelerator.is_main_process
    if trainer.first_step >= config.steps:
        if main_process:
            print(f"{config.run}: already at step {trainer.first_step} of {config.steps}; raise steps=N to go on")
        trainer.folder.release()
        return
    done = trainer.first_step
    with (
        trainer.stop.listening(),
        tqdm(
            total=config.steps,
            initial=done,
            desc=config.run.name,
            unit="step",
            disable=not main_process,
            mininterval=0.1 if sys.stderr.isatty() else 10,
        ) as bar,
    ):
        for step in trainer.run_steps():
            done = step.number
            bar.update()
            shown = {k: f"{step.metrics[k]:.4f}" for k in ("loss", "plain/noise") if k in step.metrics}
            if shown:
                bar.set_postfix(shown, refresh=False)
    if done < config.steps:
        words = f"stopped at step {done} of {config.steps}, saved; the same command goes on from there"
        raise Stopped(trainer.stop.signal, words)
    if main_process:
        print(f"done: {trainer.folder.student}\nnext: dit-shd sample {config.run} count=100")


def _sample(options: argparse.Namespace) -> None:
    from dit_shd.core.config import make
    from dit_shd.diffusion.generation import sample_to_file
    from dit_shd.diffusion.sample_config import SampleConfig

    out = sample_to_file(make(SampleConfig, _values(options, run=options.first), "sample"))
    if int(os.environ.get("RANK", "0")):  # under a launcher one process speaks
        return
    print(f"done: {out}, {out.with_suffix('.png').name} beside it\nnext: dit-shd evaluate {out} reference=...")


def _evaluate(options: argparse.Namespace) -> None:
    from dit_shd.core.config import make
    from dit_shd.core.yaml_files import override
    from dit_shd.evaluation.evaluate import EvaluateConfig, evaluate
    from dit_shd.reports.evaluation_page import write_evaluation_page

    files, assignments = _sorted_words(options)
    config = make(EvaluateConfig, override({"samples": files}, assignments), "evaluate")
    evaluate(config, write_page=write_evaluation_page)


def _statistics(options: argparse.Namespace) -> None:
    from dit_shd.core.config import make
    from dit_shd.evaluation.reference_statistics import StatisticsConfig, write_reference_statistics

    config = make(StatisticsConfig, _values(options, images=options.first), "statistics")
    out = write_reference_statistics(config)
    print(f"done: {out}\nnext: dit-shd evaluate SAMPLES reference={out} features={config.features.name}")


def _compare(options: argparse.Namespace) -> None:
    from dit_shd.cli.commands.compare import CompareConfig, compare
    from dit_shd.core.config import make
    from dit_shd.core.yaml_files import override

    files, assignments = _sorted_words(options)
    compare(make(CompareConfig, override({"results": files}, assignments), "compare"))


def _sorted_words(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Files and key=value, in any order, where a command takes several files (./a=b is a file)."""
    words = [*options.first, *options.assignments]
    assignments = [word for word in words if re.match(r"[A-Za-z_][\w.]*=", word)]
    return [word for word in words if word not in assignments], assignments


def _inspect(options: argparse.Namespace) -> None:
    from dit_shd.cli.commands.inspect import PAGE, InspectConfig, inspect_to_folder
    from dit_shd.core.config import make

    out = inspect_to_folder(make(InspectConfig, _values(options, model=options.first), "inspect"))
    print(f"done: {out / PAGE}, its pictures and numbers.json beside it")


def _convert(options: argparse.Namespace) -> None:
    from dit_shd.core.config import make
    from dit_shd.core.yaml_files import override
    from dit_shd.models.conversion import ConvertConfig, convert

    names, assignments = _sorted_words(options)
    if len(names) != 2:
        raise UserError(f"wanted two names, FILE and OUT, found {len(names)}: {' '.join(names)}")
    config = make(ConvertConfig, override({"source": names[0], "out": names[1]}, assignments), "convert")
    print("\n".join(convert(config).lines))


def _demo(options: argparse.Namespace) -> None:
    from dit_shd.cli.commands.demo import DemoConfig, demo
    from dit_shd.core.config import make

    demo(make(DemoConfig, _values(options), "demo"))


if __name__ == "__main__":
    sys.exit(main())

"""The command line: `dit-shd encode | convert | train | sample | evaluate | statistics | compare | inspect | demo`.

Errors a user can cause are one line and exit code 2. A signal ends a command with 128 and its number: 130 for Ctrl-C,
143 for SIGTERM, 138 for SIGUSR1. Training first finishes its step and saves; a second Ctrl-C ends it at once.
"""

import argparse
import io
import logging
import sys
from collections.abc import Sequence
from typing import Any

from dit_shd.cli.arguments import sorted_words, values_of
from dit_shd.cli.commands.convert import CONVERT, run_convert
from dit_shd.cli.commands.encode import run_encode
from dit_shd.cli.commands.evaluate import run_evaluate
from dit_shd.cli.commands.sample import run_sample
from dit_shd.cli.commands.statistics import run_statistics
from dit_shd.cli.commands.train import run_train
from dit_shd.core.distributed import leave_group
from dit_shd.core.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(argv)
    from dit_shd.core import plugins
    from dit_shd.core.signals import Stopped, terminable

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # not every name of a file can be printed everywhere
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
        told = "interrupted; the same command goes on from what is saved"
        print(f"\ndit-shd {options.command}: {told}", file=sys.stderr)
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
        "encode", run_encode, "dit_shd.data.encoding.EncodeConfig", None,
        "Encode images=FOLDER into latent shards out=LATENTS to train on; the same command again resumes and verifies.",
    )  # fmt: skip
    add(
        "train", run_train, "dit_shd.training.config.TrainConfig", "CONFIG",
        "Train a model, plainly or by distillation; the same command again resumes.", "a YAML file, see configs/",
    )  # fmt: skip
    add(
        "sample", run_sample, "dit_shd.diffusion.sample_config.SampleConfig", "RUN",
        "Sample images into one npz (arr_0 uint8 NHWC, arr_1 labels) and a grid.", "run or model folder",
    )  # fmt: skip
    add(
        "evaluate", run_evaluate, "dit_shd.evaluation.evaluate.EvaluateConfig", "SAMPLES...",
        "Score samples against a reference: FID or FD, sFID, IS, KID, precision, recall, density, coverage.",
        "npz or folder of images; several are scored one by one, with mean and spread",
    )  # fmt: skip
    add(
        "statistics", run_statistics, "dit_shd.evaluation.reference_statistics.StatisticsConfig", "IMAGES",
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
        "convert", run_convert, "dit_shd.models.conversion.ConvertConfig", "FILE OUT",
        CONVERT, "a checkpoint file, model folder, run or hub:OWNER/NAME; and what to write",
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


def _compare(options: argparse.Namespace) -> None:
    from dit_shd.cli.commands.compare import CompareConfig, compare
    from dit_shd.core.config import make
    from dit_shd.core.yaml_files import override

    files, assignments = sorted_words(options)
    compare(make(CompareConfig, override({"results": files}, assignments), "compare"))


def _inspect(options: argparse.Namespace) -> None:
    from dit_shd.core.config import make
    from dit_shd.core.places import look

    look(values := values_of(options, model=options.first), {"model": ("model", "MODEL")})
    from dit_shd.analysis.inspect import PAGE, InspectConfig, inspect

    out = inspect(make(InspectConfig, values, "inspect"))
    print(f"done: {out / PAGE}, its pictures and numbers.json beside it")


def _demo(options: argparse.Namespace) -> None:
    from dit_shd.cli.commands.demo import DemoConfig, demo
    from dit_shd.core.config import make

    demo(make(DemoConfig, values_of(options), "demo"))


if __name__ == "__main__":
    sys.exit(main())

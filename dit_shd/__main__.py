"""`python -m dit_shd`, for launchers: `accelerate launch -m dit_shd train CONFIG`."""

import sys


def main(argv: list[str] | None = None) -> int:
    """The command line (cli/program.py), where Ctrl-C ends a command in a line from its first moment on."""
    try:
        from dit_shd.core.signals import interruptible

        with interruptible():
            from dit_shd.cli.program import main as command

            return command(argv)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())

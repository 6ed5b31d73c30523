"""`python -m dit_shd`, for launchers: `accelerate launch -m dit_shd train CONFIG`."""

import sys


def main(argv: list[str] | None = None) -> int:
    """The command line (cli.py); Ctrl-C while that is still being imported leaves without a word."""
    try:
        from dit_shd.cli import main as command

        return command(argv)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())

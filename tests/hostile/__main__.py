"""Print the table of docs/reliability.md."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from hostile import table

print(table(), end="")

"""What mkdocs is told beside docs/mkdocs.yml."""

import re
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority


@event_priority(-100)
def on_config(config: Any) -> Any:
    """Change what the configuration cannot say.

    The search of a page that is read from a file needs a worker of its own: ours, not one from a host. Pages that the
    list does not name come last.
    """
    config.extra["polyfills"] = ["docs/file_worker.js"]
    listed = set(re.findall(r"[\w./-]+\.md", str(config.nav)))
    pages = (f"docs/{page.name}" for page in sorted((Path(config.docs_dir) / "docs").glob("*.md")))
    config.nav[-1]["Project"] += [page for page in pages if page not in listed]
    return config

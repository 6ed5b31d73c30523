"""What mkdocs is told beside docs/mkdocs.yml."""

from typing import Any

from mkdocs.plugins import event_priority


@event_priority(-100)
def on_config(config: Any) -> Any:
    """The search of a page that is read from a file needs a worker of its own: ours, not one from a host."""
    config.extra["polyfills"] = ["docs/file_worker.js"]
    return config

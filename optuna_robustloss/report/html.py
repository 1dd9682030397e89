"""Write figures as HTML pages that work offline, and files that are never half written."""

from __future__ import annotations

import os
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

PLOTLY_JS = "plotly.min.js"


def write_html(figure: go.Figure, path: Path) -> None:
    """Write a figure as a page, with ``plotly.min.js`` beside it."""
    script = path.with_name(PLOTLY_JS)
    if not script.exists():
        write_text_atomically(script, get_plotlyjs())
    write_text_atomically(path, figure.to_html(include_plotlyjs="directory"))


def write_text_atomically(path: Path, text: str) -> None:
    """Write ``text`` to a temporary file beside ``path`` and rename it.

    After a crash ``path`` holds the old text or the new one, never a part.

    Raises:
        OSError: the file cannot be written; the message names ``path`` and the reason.

    """
    draft = path.with_name(f".{path.name[:100]}.{os.getpid()}.tmp")
    try:
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")
        draft.replace(path)
    except OSError as error:  # which names no file, or the draft
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None
    finally:
        draft.unlink(missing_ok=True)

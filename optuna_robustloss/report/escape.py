"""Text of users and databases, escaped for Markdown, LaTeX, HTML, Plotly and CSV.

Control characters, bidirectional overrides and surrogates become backslash escapes everywhere.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence

import pandas as pd

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": "$-$",
    "–": "--",
    "ε": r"$\varepsilon$",
    "α": r"$\alpha$",
    "η": r"$\eta$",
} | {character: "\\" + character for character in "&%$#_{}"}
#: Spreadsheets read a cell that begins so as a formula; the last four are full-width forms.
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def escape_controls(text: str) -> str:
    r"""Return one line in which characters that are not printable are backslash escapes.

    >>> escape_controls("a\nb\u202e")
    'a\\nb\\u202e'
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def escape_latex(text: str) -> str:
    r"""Return text that LaTeX prints as it is.

    >>> escape_latex("ar_sym80, 40 %")
    'ar\\_sym80, 40 \\%'

    """
    return "".join(_LATEX.get(character, character) for character in escape_controls(text))


def escape_markdown(text: str) -> str:
    r"""Return text that a Markdown table shows as it is.

    >>> escape_markdown("a|b*")
    'a\\|b\\*'

    """
    return re.sub(r"([\\`*_\[\]<>|~&$])", r"\\\1", escape_controls(text))


def escape_html(text: str) -> str:
    """Return text that a page shows as it is.

    >>> escape_html("<b>")
    '&lt;b&gt;'
    """
    return html.escape(escape_controls(text))


def escape_plotly(text: str) -> str:
    """Return text that Plotly shows as it is: without tags or templates of its own.

    >>> escape_plotly("<b> %{x}")
    '&lt;b&gt; &#37;{x}'
    """
    return escape_html(text).replace("%{", "&#37;{")


def escape_csv(text: str) -> str:
    """Return text that a spreadsheet shows and does not evaluate.

    >>> escape_csv("=1+1")
    "'=1+1"
    """
    text = escape_controls(text)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text


def to_csv_text(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows under one header; numbers stay numbers, and text is escaped."""
    table = pd.DataFrame(
        [
            {
                escape_csv(name): escape_csv(value) if isinstance(value, str) else value
                for name, value in row.items()
            }
            for row in rows
        ]
    )
    return str(table.to_csv(index=False, lineterminator="\n"))

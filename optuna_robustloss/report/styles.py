"""How methods are called and drawn in tables and figures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

# In the order of the tables' rows; losses that do not stand here follow, by name.
_DISPLAY = {
    "ce": "CE",
    "mae": "MAE",
    "gce": "GCE",
    "sce": "SCE",
    "forward": "Forward correction",
    "bootstrap-soft": "Bootstrap (soft)",
    "bootstrap-hard": "Bootstrap (hard)",
    "label-smoothing": "Label smoothing",
    "nce": "NCE",
    "nce+rce": "NCE + RCE",
    "nce+mae": "NCE + MAE",
    "agce": "AGCE",
    "nce+agce": "NCE + AGCE",
    "anl-ce": "ANL-CE",
    "jal-ce": "JAL-CE",
    "eps-softmax": "ε-softmax + MAE",
    "elr": "ELR",
    "jocor": "JoCoR",
    "sce-then-confirm": "SCE, then confirmed labels",
    "ce-then-mae": "CE, then MAE",
    "ce-stopped-clean": "CE with early stopping (clean)",
    "ce-stopped-noisy": "CE with early stopping (noisy)",
}

# Okabe and Ito's colour-blind-safe palette, without the yellow, which is too light for lines.
# Vermillion is kept for losses without a name here: the learned ones.
_COLOURS = ("#000000", "#0072B2", "#E69F00", "#009E73", "#56B4E9", "#CC79A7")
_LEARNED = "#D55E00"
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross")


@dataclass(frozen=True)
class Style:
    """Line and marker of a method, as Plotly names them; no two named methods share one."""

    colour: str
    dash: str
    symbol: str


_LOOKS = [_DASHES[i] + " " + _SYMBOLS[i] for i in range(len(_DASHES))]
_NAMED = {
    method: Style(colour, *look.split())
    for method, (look, colour) in zip(_DISPLAY, product(_LOOKS, _COLOURS), strict=False)
}


def display_name(method: str) -> str:
    """Return a method's name for people; one that is not known is shown as it is.

    >>> display_name("nce+rce"), display_name("ar_sym80"), display_name("ce-then-mae@1.26")
    ('NCE + RCE', 'ar_sym80', 'CE, then MAE at 1.26 steps × lr')

    """
    base, at, switch = method.partition("@")
    if at and "-then-" in base and base in _DISPLAY:
        return f"{_DISPLAY[base]} at {switch} steps × lr"
    return _DISPLAY.get(method, method)


def in_order(methods: Iterable[str]) -> tuple[str, ...]:
    """Return the different methods in the order of tables: the known ones, then by name."""
    place = {method: number for number, method in enumerate(_DISPLAY)}
    return tuple(sorted(set(methods), key=lambda m: (place.get(m, len(place)), m)))


def styles(methods: Iterable[str]) -> dict[str, Style]:
    """Return the style of each method.

    A known method has the same one everywhere; the others, shades of vermillion by their names'
    order, have it in all figures that are given the styles of all methods.
    """
    given = in_order(methods)
    others = [method for method in given if method not in _NAMED]
    looks = [_LOOKS[number % len(_LOOKS)].split() for number in range(len(others))]
    learned = {m: Style(_LEARNED, *look) for m, look in zip(others, looks, strict=True)}
    return {method: _NAMED.get(method) or learned[method] for method in given}

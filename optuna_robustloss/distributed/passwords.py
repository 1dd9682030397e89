"""What messages never show: the passwords in a storage's URL."""

from __future__ import annotations

import re
from urllib.parse import quote, quote_plus, unquote, unquote_plus

HIDDEN = "***"
#: ``password=…`` and its like in the query of a URL.
_QUERY = re.compile(
    r"((?:\b|_|ssl)(?:password|passwd|pwd|passphrase|passfile|secret|token)=)([^&]*)", re.IGNORECASE
)
#: Shorter passwords are only replaced where they stand alone: they are parts of other words.
_SHORT = 4


def _split(storage: str) -> tuple[str, str | None, str]:
    """Return what stands before, in, and after the ``user:password@`` part's password.

    Everything between the first colon of that part and the last ``@`` counts: a password with an
    unquoted ``@``, and a URL whose slashes or colon are missing, must not show a bit of it.
    """
    head, at, tail = storage.rpartition("@")
    if not at or storage.startswith("sqlite:///"):
        return storage, None, ""
    scheme = re.match(r"[^:/@]*:?//", head)
    start = scheme.end() if scheme else 0
    user, colon, password = head[start:].partition(":")
    if not colon:
        return storage, None, ""
    return head[:start] + user + ":", password, "@" + tail


def safe_url(storage: str) -> str:
    """``storage`` without its password, for messages.

    >>> safe_url("postgresql+psycopg://me:se@cret@host/db")
    'postgresql+psycopg://me:***@host/db'
    """
    before, password, after = _split(storage)
    shown = before if password is None else before + HIDDEN + after
    return _QUERY.sub(rf"\1{HIDDEN}", shown)


def has_password(storage: str) -> bool:
    """Whether a URL has a password in it, or a part of one; ``$NAME`` and ``${NAME}`` are none.

    >>> has_password("mysql://me:secret@host/db"), has_password("mysql://me:$SECRET@host/db")
    (True, False)
    """
    rest = re.sub(r"\$(\w+|\{\w+\})", "", storage)
    return bool(_split(rest)[1]) or any(match[2] for match in _QUERY.finditer(rest))


def scrub(text: str, storage: str) -> str:
    """``text`` without the password that is in the URL ``storage``, however it is written.

    >>> scrub("no route to cret@host with p%40ss", "mysql://me:p%40ss@cret@host/db")
    'no route to ***@host with ***'
    """
    text = text.replace(storage, safe_url(storage))
    for secret in sorted(_secrets(storage), key=len, reverse=True):
        pattern = re.escape(secret)
        if len(secret) < _SHORT:
            pattern = rf"(?<!\w){pattern}(?!\w)"
        text = re.sub(pattern, HIDDEN, text, flags=re.IGNORECASE)
    return text


def _secrets(storage: str) -> set[str]:
    """All spellings of the passwords in ``storage``, and of their parts around an ``@``."""
    _, password, _ = _split(storage)
    raw = [match[2] for match in _QUERY.finditer(storage)]
    if password:
        # Parsers end a password at its first or its last unquoted @ and take the rest for a host.
        raw += [password, *password.split("@")]
    plain = {form for secret in raw for form in (secret, unquote(secret), unquote_plus(secret))}
    spelt = {
        form
        for secret in plain
        for form in (secret, quote(secret), quote(secret, safe=""), quote_plus(secret))
    }
    return {form for secret in spelt for form in (secret, repr(secret)[1:-1])} - {"", HIDDEN}

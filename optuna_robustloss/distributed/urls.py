"""Storage URLs as messages may show them: without their passwords."""

from __future__ import annotations

import re
from urllib.parse import quote, quote_plus, unquote, unquote_plus

_MASK = "***"
#: ``password=…`` and its like in the query of a URL.
_QUERY_SECRET = re.compile(
    r"((?:\b|_|ssl)(?:password|passwd|pwd|passphrase|passfile|secret|token)=)([^&]*)", re.IGNORECASE
)
#: What stands around the password of ``user:password@``. SQLAlchemy renders only what it can parse;
#: here a password may hold an unquoted ``@``, and slashes or colons of the URL may be missing.
_LOGIN = re.compile(r"^((?:[^:/@]*:?//)?+[^:]*:)(.+)(@.*)$", re.DOTALL)
#: Shorter passwords are only replaced where they stand alone: they are parts of other words.
_SHORT = 4


def mask_password(url: str) -> str:
    """Return a storage URL with every password replaced by ``***``.

    >>> mask_password("postgresql+psycopg://me:secret@host/db")
    'postgresql+psycopg://me:***@host/db'
    >>> mask_password("mysql://host/db?password=secret&x=1")
    'mysql://host/db?password=***&x=1'
    """
    masked = url if url.startswith("sqlite:///") else _LOGIN.sub(rf"\1{_MASK}\3", url)
    return _QUERY_SECRET.sub(rf"\1{_MASK}", masked)


def has_password(url: str) -> bool:
    """Return whether a URL holds a password; ``$NAME`` and ``${NAME}`` are none.

    >>> has_password("mysql://me:secret@host/db"), has_password("mysql://me:$SECRET@host/db")
    (True, False)
    """
    return bool(_passwords_of(re.sub(r"\$(\w+|\{\w+\})", "", url)))


def mask_password_in(text: str, url: str) -> str:
    """Return ``text``, such as a driver's error, without the passwords of ``url``.

    >>> mask_password_in("no route to p%40ss@host", "mysql://me:p%40ss@host/db")
    'no route to ***@host'
    """
    text = text.replace(url, mask_password(url))
    spellings = {
        spelling
        for password in _passwords_of(url)
        for part in (password, *password.split("@"))
        for plain in (part, unquote(part), unquote_plus(part))
        for quoted in (plain, quote(plain), quote(plain, safe=""), quote_plus(plain))
        for spelling in (quoted, repr(quoted)[1:-1])
    }
    for spelling in sorted(spellings - {"", _MASK}, key=len, reverse=True):
        pattern = re.escape(spelling)
        if len(spelling) < _SHORT:
            pattern = rf"(?<!\w){pattern}(?!\w)"
        text = re.sub(pattern, _MASK, text, flags=re.IGNORECASE)
    return text


def _passwords_of(url: str) -> list[str]:
    login = None if url.startswith("sqlite:///") else _LOGIN.match(url)
    passwords = [match[2] for match in _QUERY_SECRET.finditer(url)]
    return [p for p in [login[2] if login else "", *passwords] if p]

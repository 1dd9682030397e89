"""Storage URLs in messages: without their passwords, and in one line."""

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
#: Characters of a URL that a message shows.
_LONGEST = 200
_FORMS = (
    "sqlite:///search.db, postgresql+psycopg://user:password@host/database, "
    "mysql+pymysql://user:password@host/database, journal:search.log or grpc://host:port"
)
#: Shorter passwords are only replaced where they stand alone: they are parts of other words.
_SHORT = 4


def mask_password(url: str) -> str:
    """Return a storage URL with every password replaced by ``***``.

    >>> mask_password("postgresql+psycopg://me:secret@host/db")
    'postgresql+psycopg://me:***@host/db'
    >>> mask_password("mysql://host/db?password=secret&x=1")
    'mysql://host/db?password=***&x=1'
    """
    masked = url if _is_file(url) else _LOGIN.sub(rf"\1{_MASK}\3", url)
    return _QUERY_SECRET.sub(rf"\1{_MASK}", masked)


def show_url(url: str) -> str:
    """Return a URL in quotes as messages show it: with masked passwords, and cut in the middle."""
    return f"'{shorten(mask_password(url))}'"


def shorten(text: str) -> str:
    """Return a text in one line: cut in the middle, and with escapes for what is not printable."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]}…{text[-_LONGEST // 2 :]}"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def cannot_open(url: str, why: str) -> ValueError:
    """Return the error of a storage that cannot be opened."""
    return ValueError(f"cannot open the storage {show_url(url)}: {mask_password_in(why, url)}")


def malformed(url: str) -> ValueError:
    """Return the error of what is no URL of a storage."""
    return ValueError(f"{show_url(url)} is not a storage URL: use for example {_FORMS}")


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
    login = None if _is_file(url) else _LOGIN.match(url)
    passwords = [match[2] for match in _QUERY_SECRET.finditer(url)]
    return [p for p in [login[2] if login else "", *passwords] if p]


def _is_file(url: str) -> bool:
    return url.lower().startswith(("sqlite:///", "journal:"))

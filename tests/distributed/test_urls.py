"""What messages never show, however it is written."""

from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from optuna_robustloss.distributed.urls import mask_password, mask_password_in


# None of these is in the words around the password, nor four of them in a row in the URL.
@given(
    password=st.text("QZ07@:/?#%+ &='\\\"{}é", min_size=4), user=st.sampled_from(["me", "", "a@b"])
)
@example(password="Q%40ZZ+QQ Z", user="me")
@example(password="Q:Z@0/7?é", user="me")
def test_no_spelling_of_a_password_is_left(password, user):
    forms = [password, quote(password), quote(password, safe=""), quote_plus(password)]
    for written in forms:
        url = f"mysql+pymysql://{user}:{written}@host/db"
        said = "words of a driver, {0}, {1}@host, <{2}> {3!r} {0!r} and ".format(*forms) + url
        shown = mask_password_in(said, url)
        assert not any(form in shown for form in forms), shown
        assert "words of a driver" in shown
        assert mask_password(url) == f"mysql+pymysql://{user}:***@host/db"


@pytest.mark.parametrize(
    ("url", "text", "shown"),
    [
        ("mysql://me:se@cret@host/db", "no host cret@host", "no host ***@host"),
        ("mysql://me:ab@host/db", "table ab", "table ***"),
        ("mysql://me:ab@host/db", "database about me", "database about me"),
        ("mysql://host/db?password=top%20s", "'top s' top%20s top+s", "'***' *** ***"),
        ("mysql://host/db?ssl_key_password=tops", "tops TOPS", "*** ***"),
        (
            "postgresql://us/er:tops@h/db",
            "tops postgresql://us/er:tops@h/db",
            "*** postgresql://us/er:***@h/db",
        ),
        ("redis://:tops@host", "redis://:tops@host", "redis://:***@host"),
        ("sqlite:///a:b@c.db", "sqlite:///a:b@c.db b", "sqlite:///a:b@c.db b"),
    ],
)
def test_only_the_password_is_masked(url, text, shown):
    assert mask_password_in(text, url) == shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:///a@b/study.db", "sqlite:///a@b/study.db"),
        ("mysql://me:secret@host:1/db?x=1", "mysql://me:***@host:1/db?x=1"),
        ("mysql://host/db?password=secret&x=1", "mysql://host/db?password=***&x=1"),
    ],
)
def test_the_rest_of_a_url_is_shown(url, shown):
    assert mask_password(url) == shown

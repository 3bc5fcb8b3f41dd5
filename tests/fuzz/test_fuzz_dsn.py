"""Whatever stands in a DSN: an answer in our own words, the address that was meant, and no password in any text."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from creche.errors import ConfigurationError, CrecheError
from creche.storage import mask, open_storage
from creche.storage._mysql_address import parse_dsn
from creche.storage._psycopg import _parameters
from creche.storage.sqlite import SQLiteStorage
from fuzz.corpus import kept

CANARY = "canary"

# --- anything ----------------------------------------------------------------------------------------

PIECES = st.sampled_from(kept("dsn_pieces"))


def answers_in_our_words(dsn: str) -> None:
    assert mask(mask(dsn)) == mask(dsn)
    texts = [mask(dsn)]
    try:
        texts.append(repr(open_storage(dsn)))
    except CrecheError as error:
        texts += all_that_is_said(error)
    try:
        _parameters(dsn)
    except ConfigurationError as error:
        texts += all_that_is_said(error)
    assert not any(CANARY in text for text in texts)


def all_that_is_said(error: BaseException) -> Iterator[str]:
    """Yield the texts of an error, and of those that a traceback would show with it."""
    said: BaseException | None = error
    while said is not None:
        yield str(said)
        yield repr(vars(said))
        said = said.__cause__ or (None if said.__suppress_context__ else said.__context__)


@pytest.mark.parametrize("dsn", kept("dsn"))
def test_what_was_met_before(dsn: str) -> None:
    answers_in_our_words(dsn)


@given(st.text() | st.lists(PIECES, max_size=12).map("".join))
def test_anything(dsn: str) -> None:
    answers_in_our_words(dsn)


SPECIAL = [*"@:/?#[]%&=' \"\\;,+é\n$!", "%zz", "%40", "x", "password=", "://", "@host", ":5"]


@st.composite
def with_a_secret(draw: st.DrawFn) -> str:
    """A DSN whose password was not encoded as it should be."""
    special = st.lists(st.sampled_from(SPECIAL), max_size=4).map("".join)
    schemes = [
        "mysql",
        "MariaDB",
        "postgresql",
        "postgres+psycopg",
        "sqlite",
        "sqlite+aiosqlite",
        "memory",
        "redis",
        "",
    ]
    hosts = ["", "host", "host:1", "host:99999", "host:x", "[::1]:5", "[x", "a:1,b:2", "%2Frun", "1.2.3.4"]
    queries = [
        "",
        "?",
        "?pool_size=3",
        "?call_timeout=x",
        "?ssl_mode=bad",
        "?connect_timeout=nan",
        "?x=1",
        "?%ff=1",
        "#f",
    ]
    password = f"{draw(special)}{CANARY}{draw(special)}"
    user = draw(st.sampled_from(["", "user", "u%40x", "ü"]))
    path = draw(st.sampled_from(["", "/", "/db", "/db/x", "/d%2Fb", "/é"]))
    place = f"{draw(st.sampled_from(hosts))}{path}{draw(st.sampled_from(queries))}"
    return f"{draw(st.sampled_from(schemes))}://{user}:{password}@{place}"


@given(with_a_secret())
def test_a_password_that_is_not_encoded(dsn: str) -> None:
    answers_in_our_words(dsn)


# --- what was meant ----------------------------------------------------------------------------------

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(
    password=NAMES.map(lambda text: text.replace("\0", "") + CANARY), name=st.sampled_from(["password", "sslpassword"])
)
def test_a_password_in_libpqs_own_way(password: str, name: str) -> None:
    conninfo = make_conninfo("", host="a", **{name: password}, dbname="b")
    assert conninfo_to_dict(conninfo)[name] == password
    assert CANARY not in mask(conninfo)
    assert mask(conninfo).startswith("host=a ")
    assert mask(conninfo).endswith(" dbname=b")


@given(
    user=NAMES,
    password=NAMES,
    database=NAMES.filter(bool),
    host=st.sampled_from(["host", "::1", "10.0.0.1", "db.example.org"]),
    port=st.none() | st.integers(0, 65_535),
)
def test_what_is_encoded_comes_back(user: str, password: str, database: str, host: str, port: int | None) -> None:
    where = f"[{host}]" if ":" in host else host
    where = where if port is None else f"{where}:{port}"
    dsn = f"mysql://{quote(user, safe='')}:{quote(password, safe='')}@{where}/{quote(database, safe='')}"
    destination, options = parse_dsn(dsn)
    (address,) = destination.hosts
    assert (address.password, address.database, address.host) == (password, database, host)
    assert address.port == (3306 if port is None else port)
    assert not user or address.user == user
    assert options == {}
    assert repr(password) not in repr(address) or password in {"", user, database, host}


@given(st.binary(min_size=1, max_size=12).filter(lambda name: b"\0" not in name and b"/" not in name and name != b"."))
def test_a_files_name_may_be_any_bytes(name: bytes) -> None:
    storage = open_storage(f"sqlite:////tmp/{quote(name)}")
    assert isinstance(storage, SQLiteStorage)
    assert os.fsencode(storage._database.path) == bytes(Path("/tmp")) + b"/" + name

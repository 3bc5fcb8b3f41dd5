"""What is written into MySQL's statements as text is what the server reads, whatever it is."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from enum import IntEnum
from uuid import UUID

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from creche.storage._asyncmy import AsyncmyDriver
from creche.storage._mysql_address import parse_dsn
from creche.storage._mysql_calls import chunks
from creche.storage._mysql_literals import Expression, among, clock, literal, render
from creche.storage._mysql_rows import document, document_element, joined

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
VALUES = st.one_of(
    TEXTS,
    st.sampled_from(
        ["'", "''", "\\", "\\'", '"', "%s", "%(now)s", "%%", "';\n--", "/*", "\0", "😀", "'; DROP TABLE x; --"]
    ),
    st.binary(max_size=40),
    st.integers(-(2**63), 2**63 - 1),
    st.none(),
)


def asked_back(dsn: str, values: list[object]) -> list[object]:
    """Send values to a server as literals; return what it says they are."""

    async def ask() -> list[object]:
        driver = AsyncmyDriver(parse_dsn(dsn)[0])
        connection = await driver.connect()
        try:
            asked = render("SELECT %(values)s", {"values": values})
            return list((await connection.run(asked))[0].rows[0])
        finally:
            await driver.close(connection)

    return anyio.run(ask)


@pytest.mark.parametrize("server", ["mariadb", "mysql"])
def test_values_come_back_as_they_were(server: str, request: pytest.FixtureRequest) -> None:
    dsn = str(request.getfixturevalue(f"{server}_dsn"))

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(VALUES, min_size=1, max_size=30))
    def check(values: list[object]) -> None:
        assert asked_back(dsn, values) == values

    check()


@pytest.mark.parametrize("server", ["mariadb", "mysql"])
def test_moments_are_utc_to_the_microsecond(server: str, request: pytest.FixtureRequest) -> None:
    dsn = str(request.getfixturevalue(f"{server}_dsn"))
    moments = [
        datetime(2024, 2, 29, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(2030, 7, 1, 1, 2, 3, 4, tzinfo=timezone(timedelta(hours=-11))),
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
    ]
    told = asked_back(dsn, [Expression(literal(moment)) for moment in moments])
    assert told == [moment.astimezone(UTC).replace(tzinfo=None) for moment in moments]


def test_a_quote_behind_a_backslash_ends_no_string_in_any_mode() -> None:
    assert literal("\\' OR 1") == "_utf8mb4 x'5c27204f522031'"
    assert literal("ends in \\") == "_utf8mb4 x'656e647320696e205c'"
    assert literal("it's \\n") == "'it''s \\n'"


@given(st.lists(st.one_of(TEXTS, st.text("\\'\" a", max_size=40)), max_size=5))
def test_a_document_is_the_same_document_and_never_in_hexadecimal(texts: list[str]) -> None:
    nested = [json.dumps(text, ensure_ascii=False) for text in texts]
    text = document([*texts, *nested])
    assert json.loads(text) == [*texts, *nested]
    assert literal(text) == "'" + text.replace("'", "''") + "'"


@given(st.lists(st.text("\\'\"aé", max_size=200), max_size=20), st.integers(300, 1_500))
def test_no_part_of_a_document_is_longer_than_it_was_measured(texts: list[str], most: int) -> None:
    elements = [document_element({"result": text}) for text in texts]
    parts = [*chunks(elements, most)]
    assert [element for part in parts for element in part] == elements
    for part in parts:
        assert len(part) == 1 or len(literal(joined(part)).encode()) <= most * 3 // 4 + len("'[]'")


def test_what_looks_like_a_number_is_written_as_one() -> None:
    class Level(IntEnum):
        HIGH = 7

    assert literal([Level.HIGH, True, 1.5]) == "7, TRUE, 1.5"


def test_an_id_and_a_hash_are_bytes() -> None:
    assert literal(UUID(int=1)) == "x'00000000000000000000000000000001'"
    assert literal(b"\xff") == "x'ff'"
    assert literal(b"") == "x''"


def test_members_stand_side_by_side() -> None:
    assert literal(["a", 1, None, True]) == "'a', 1, NULL, TRUE"


def test_what_is_no_literal_is_refused() -> None:
    with pytest.raises(TypeError, match="object is no literal"):
        literal(object())


def test_a_filter_of_nothing_matches_nothing_and_none_is_no_filter() -> None:
    assert among("type", []) == "FALSE"
    assert among("type", None) == "TRUE"
    assert among("type", {"b", "a'"}) == "type IN ('a''', 'b')"


def test_the_clock_is_the_database_s_unless_a_test_has_its_own() -> None:
    assert clock(None) == "UTC_TIMESTAMP(6)"
    assert clock(datetime(2030, 1, 1, tzinfo=UTC)) == "TIMESTAMP'2030-01-01 00:00:00.000000'"

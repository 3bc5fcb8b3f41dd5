"""What commands say of themselves: on the page as in the terminal, and readable in eighty columns."""

from __future__ import annotations

import click

from cli.help_texts import PAGE, commands, documented, rendered


def test_every_command_stands_on_the_page_with_its_help_of_today() -> None:
    page = PAGE.read_text()
    assert documented(page) == {" ".join(words) for words, _ in commands()}
    assert rendered(page) == page, "run python tests/cli/help_texts.py"


def test_a_help_text_fits_eighty_columns_and_no_sentence_is_cut() -> None:
    for words, context in commands():
        text = context.get_help()
        assert max(map(len, text.splitlines())) <= 80, words
        assert not [line for line in text.partition("Commands:")[2].splitlines() if line.endswith("...")], words


def test_every_option_says_what_it_does_and_every_command_that_reads_has_json() -> None:
    for words, context in commands():
        command = context.command
        options = [each for each in command.params if isinstance(each, click.Option)]
        assert all(option.help for option in options), words
        if words and words[-1] in {"list", "show", "watch", "workers", "top", "doctor", "queues"}:
            assert isinstance(command, click.Group) or "json" in {option.name for option in options}, words

"""Which setting is advised, on numbers that were made up, and how they are drawn."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from creche.bench._heat import PlotFailed, drawn, panels, plot
from creche.bench._settings import Cell, Choice, Setting, choose, grid, rounds
from creche.cli._tables import new_table


def cell(concurrency: int, *rates: float, prefetch: int = 0, processes: int = 1) -> Cell:
    setting = Setting(processes=processes, concurrency=concurrency, prefetch=prefetch)
    return Cell(setting=setting, rates=list(rates), costs=[1e-4])


def chosen(*cells: Cell) -> Setting:
    return choose(cells).chosen.setting


def test_of_a_plateau_the_corner_is_chosen_and_not_its_highest_point() -> None:
    cells = [cell(1, 100), cell(10, 970), cell(50, 990), cell(100, 1_000)]
    choice = choose(cells)
    assert choice.best is cells[3]
    assert choice.chosen is cells[1]


def test_where_more_is_better_by_more_than_a_few_percent_the_best_is_chosen() -> None:
    assert chosen(cell(1, 100), cell(10, 900), cell(100, 1_000)).concurrency == 100


def test_a_process_counts_for_more_than_a_slot_and_a_slot_for_more_than_prefetch() -> None:
    equal = [cell(c, 1_000, prefetch=p, processes=n) for c in (5, 50) for p in (0, 100) for n in (1, 2)]
    assert chosen(*reversed(equal)) == Setting(processes=1, concurrency=5, prefetch=0)
    without_the_smallest = [each for each in equal if each.setting != Setting(processes=1, concurrency=5, prefetch=0)]
    assert chosen(*without_the_smallest) == Setting(processes=1, concurrency=5, prefetch=100)
    assert chosen(cell(5, 1_000, processes=2), cell(50, 1_000)) == Setting(processes=1, concurrency=50, prefetch=0)


def test_one_lucky_run_makes_no_best() -> None:
    assert chosen(cell(10, 990, 1_000, 1_010), cell(100, 700, 710, 5_000)).concurrency == 10


def test_what_differs_by_less_than_equal_runs_do_is_as_good() -> None:
    noisy = [cell(10, 780, 880, 980), cell(100, 900, 1_000, 1_100)]
    choice = choose(noisy)
    assert choice.tolerance == pytest.approx((100 / 880 + 0.1) / 2)
    assert choice.chosen is noisy[1]
    noisier = [cell(10, 680, 880, 1_080), cell(100, 800, 1_000, 1_200)]
    assert choose(noisier).chosen is noisier[0]


def test_noise_excuses_a_quarter_at_most() -> None:
    wild = [cell(10, 100, 700, 2_000), cell(100, 100, 1_000, 2_000)]
    assert choose(wild).tolerance == 0.25
    assert choose(wild).chosen is wild[1]


def test_a_grid_has_each_combination_once_the_smallest_first() -> None:
    found = grid([10, 1, 10], [0, 5], [2, 1])
    assert len(found) == len(set(found)) == 8
    assert found[0] == Setting(processes=1, concurrency=1, prefetch=0)
    assert found == sorted(found)


def test_every_other_round_goes_backwards() -> None:
    assert list(rounds("abc", 3)) == [(turn, each) for turn, word in enumerate(("abc", "cba", "abc")) for each in word]


# --- drawn --------------------------------------------------------------------------------------------------


def sheet(concurrencies: Sequence[int], prefetches: Sequence[int], *, most: float) -> tuple[list[Cell], list[Choice]]:
    """A sheet of cells whose rate grows with their concurrency."""
    largest = max(concurrencies)
    cells = [
        cell(c, most * c / largest, prefetch=p, processes=n) for c in concurrencies for p in prefetches for n in (1, 2)
    ]
    return cells, [choose(cells)]


def text(cells: Sequence[Cell], choices: Sequence[Choice], environment: Mapping[str, str] | None = None) -> str:
    console = Console(file=io.StringIO(), width=80, highlight=False, markup=False, _environ=environment or {})
    with console.capture() as captured:
        for panel in panels(cells, choices):
            console.print(*drawn(panel, new_table, width=80))
    return captured.get()


@pytest.mark.parametrize("most", [9.99, 999_999])
@pytest.mark.parametrize("columns", [1, 4, 6, 13])
def test_a_heat_map_fits_eighty_columns_with_every_number_whole(columns: int, most: float) -> None:
    cells, choices = sheet([1, 100, 10_000], range(columns), most=most)
    shown = text(cells, choices)
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    assert shown.count("░") >= columns


def test_the_choice_and_the_best_are_told_without_colours() -> None:
    cells = [cell(1, 100), cell(10, 970), cell(100, 1_000)]
    lines = text(cells, [choose(cells)]).splitlines()
    assert ["[" in line for line in lines[-3:]] == [False, True, False]
    assert ["*" in line for line in lines[-3:]] == [False, False, True]
    assert "█" in lines[-1]
    assert "░" in lines[-3]


def test_what_differs_in_processes_or_handlers_has_a_panel_of_its_own() -> None:
    cells, choices = sheet([1, 10], [0], most=100)
    found = list(panels(cells, choices))
    assert [panel.title for panel in found] == ["1 process", "2 processes"]
    slow = [Cell(setting=each.setting, milliseconds=20, rates=each.rates, costs=each.costs) for each in cells]
    both = list(panels([*cells, *slow], [choose(cells), choose(slow)]))
    assert [panel.title for panel in both[2:]] == ["1 process, handlers of 20 ms", "2 processes, handlers of 20 ms"]


def test_the_same_panels_become_a_png(tmp_path: Path) -> None:
    cells, choices = sheet([1, 10], [0, 100], most=12_345)
    plot(tmp_path / "sweep.png", list(panels(cells, choices)), title="jobs/s")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_a_png_that_can_not_be_written_is_an_error_of_ours(tmp_path: Path) -> None:
    cells, choices = sheet([1, 10], [0, 100], most=12_345)
    with pytest.raises(PlotFailed, match="matplotlib can't draw: FileNotFoundError"):
        plot(tmp_path / "no" / "sweep.png", list(panels(cells, choices)), title="jobs/s")

"""The picks as they are printed on the terminal."""

import io

from rich.console import Console

from selectron.report.table import PickRow, picks_table


def printed(rows, **options):
    console = Console(width=100, file=io.StringIO(), color_system=None)
    console.print(picks_table(rows, **options))
    return console.file.getvalue()


def test_rows_are_cut_and_the_others_counted():
    rows = [PickRow(i, f"folder/pool_{i}.extxyz", 10 * i, "C2H6", 0.5 * i, 1e-7 * i) for i in range(27)]
    text = printed(rows)
    assert "pool_19.extxyz" in text
    assert "pool_20.extxyz" not in text
    assert "folder" not in text
    assert "… 7 more" in text
    assert "more" not in printed(rows, max_rows=27)


def test_missing_numbers_are_dashes_and_distances_appear_when_there_are_any():
    assert "–" in printed([PickRow(0, "pool.extxyz", 3, "H2O", None, float("nan"))])
    assert "distance" not in printed([PickRow(0, "pool.extxyz", 3, "H2O")])
    assert "0.1235" in printed([PickRow(0, "pool.extxyz", 3, "H2O", distance=0.12345), PickRow(1, "p.xyz", 4, "H2")])


def test_an_empty_list_of_picks_prints():
    assert "rank" in printed([])

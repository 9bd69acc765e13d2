"""What becomes of a campaign whose own files are damaged: told, made anew where it can be, never read as something else."""

import shutil
import sqlite3
from contextlib import closing

import numpy as np
import pytest
from quick_campaign import run_quickly, story

from selectron.campaign.context import Unwatched
from selectron.campaign.history import read_campaign
from selectron.campaign.state import CampaignState
from selectron.errors import SelectronError


class Listener(Unwatched):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


@pytest.fixture
def copy(undisturbed, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    return folder


def change(folder, sql, *values):
    with closing(sqlite3.connect(folder / "campaign.sqlite")) as connection, connection:
        assert connection.execute(sql, values).rowcount


@pytest.mark.parametrize("name", ["measure", "label", "train", "pick"])
def test_a_damaged_stage_is_not_read_and_is_run_again(server, copy, undisturbed, name):
    """One digit of its output, as a flipped bit changes it."""
    before = story(undisturbed)
    change(
        copy,
        "UPDATE stages SET output = replace(output, '1', '3') WHERE id = (SELECT max(id) FROM stages WHERE name = ?)",
        name,
    )
    said = r"campaign.sqlite says of stage \d+ of the campaign is damaged.*selectron resume"
    with pytest.raises(SelectronError, match=said):
        read_campaign(copy)
    if name == "measure":
        listener = Listener()
        run_quickly(copy, listener)
        assert sum("damaged: it is set aside" in line and "run again" in line for line in listener.lines) == 1
    server.start(copy)
    assert server.wait() == 0
    assert story(copy) == before
    assert read_campaign(copy).finished


def test_a_trail_with_a_gap_is_told(copy):
    change(copy, "DELETE FROM trail WHERE position = 2")
    with pytest.raises(SelectronError, match="stage 3 of the campaign is damaged"):
        read_campaign(copy)


@pytest.mark.parametrize("value", ["{not json", '{"name": "other"}', 5, b"\xff"])
def test_a_damaged_fact_is_one_sentence(copy, value):
    change(copy, "UPDATE facts SET value = ? WHERE name = 'config'", value)
    for use in (read_campaign, run_quickly):
        with pytest.raises(SelectronError, match="the campaign's config is damaged"):
            use(copy)


def test_what_is_being_done_may_be_damaged(copy):
    change(copy, "UPDATE activity SET started = 'now', done = 'all'")
    assert read_campaign(copy).activity is None
    (copy / "lock").write_bytes(b"\xff\xfe\x00")
    assert read_campaign(copy).process is None


def test_a_file_from_before_checksums_is_read_and_gets_them(copy, undisturbed):
    for table in ("facts", "stages", "labels", "failures", "structures", "oracles"):
        with closing(sqlite3.connect(copy / "campaign.sqlite")) as connection, connection:
            connection.execute(f"ALTER TABLE {table} DROP COLUMN checksum")
    assert story(copy) == story(undisturbed)
    listener = Listener()
    run_quickly(copy, listener)
    assert any("is from before rows had checksums" in line for line in listener.lines)
    change(copy, "UPDATE stages SET output = replace(output, '1', '2') WHERE name = 'measure'")
    with pytest.raises(SelectronError, match="is damaged"):
        read_campaign(copy)


def test_flipped_bits_anywhere_in_the_file_change_no_number(copy, undisturbed):
    """The story is the same, or the file is refused in a sentence."""
    before, random = story(undisturbed), np.random.default_rng(7)
    path = copy / "campaign.sqlite"
    whole, refused = path.read_bytes(), 0
    for place in random.integers(0, len(whole), 60).tolist():
        changed = bytearray(whole)
        changed[place] ^= 1 << int(random.integers(8))
        path.write_bytes(changed)
        try:
            assert story(copy) == before
        except SelectronError:
            refused += 1
    assert refused > 5


@pytest.mark.parametrize("content", [b"", b"no database " * 1000])
def test_a_file_that_is_no_campaign_is_one_sentence(copy, content):
    (copy / "campaign.sqlite").write_bytes(content)
    with pytest.raises(SelectronError):
        read_campaign(copy)
    with pytest.raises(SelectronError):
        CampaignState(copy, read_only=True).stages()

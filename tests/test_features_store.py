"""Rows on disk, and the extraction that fills them."""

import contextlib
import multiprocessing
import sqlite3

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from selectron.errors import SelectronError
from selectron.features import EnergyNTKFeatures, FeatureStore, default_cache, extract
from selectron.features.store import DamagedRows
from selectron.potentials import MacePotential
from selectron.rows import Rows, one_row_each
from selectron.structures import structure_hash
from small_maces import small_mace, structures

FINGERPRINT = "0123456789abcdef0123456789abcdef"


def key(number):
    return f"{number:032x}"


def change(path, sql, *values):
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(sql, values)


def some_rows(counts, dim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Rows(torch.randn(sum(counts), dim, generator=generator), torch.tensor(counts))


class TestStore:
    def test_rows_come_back_as_they_went_in(self, tmp_path):
        rows = some_rows([1, 4, 0, 3], dim=5)
        keys = [key(i) for i in range(4)]
        store = FeatureStore(tmp_path, FINGERPRINT, 5)
        store.put(keys, rows)
        store.close()
        store = FeatureStore(tmp_path, FINGERPRINT, 5)
        assert store.known([*keys, key(99)]) == set(keys)
        order = [3, 1, 1, 2, 0]
        back, expected = store.get([keys[i] for i in order]), rows.take(order)
        assert torch.equal(back.values, expected.values)
        assert torch.equal(back.counts, expected.counts)
        assert back.values.dtype == torch.float32

    def test_thousands_of_keys_and_none(self, tmp_path):
        store = FeatureStore(tmp_path, FINGERPRINT, 2)
        keys = [key(i) for i in range(2345)]
        rows = some_rows([1] * 2345, dim=2)
        store.put(keys, rows)
        assert store.known(keys) == set(keys)
        assert torch.equal(store.get(keys).values, rows.values)
        assert store.get([]).values.shape == (0, 2)
        assert store.known([]) == set()

    def test_what_is_there_is_kept(self, tmp_path):
        store = FeatureStore(tmp_path, FINGERPRINT, 3)
        first, second = some_rows([1], 3, seed=1), some_rows([1], 3, seed=2)
        store.put([key(0)], first)
        store.put([key(0)], second)
        assert torch.equal(store.get([key(0)]).values, first.values)

    def test_fingerprints_do_not_mix(self, tmp_path):
        FeatureStore(tmp_path, FINGERPRINT, 3).put([key(0)], some_rows([1], 3))
        assert FeatureStore(tmp_path, FINGERPRINT[::-1], 3).known([key(0)]) == set()

    def test_a_store_without_a_folder_leaves_nothing(self):
        store = FeatureStore(None, FINGERPRINT, 3)
        store.put([key(0)], some_rows([1], 3))
        folder = store.path.parent
        assert store.known([key(0)]) == {key(0)}
        store.close()
        assert not folder.exists()

    @pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\x00" + b"\xff" * 4096])
    def test_a_file_that_is_no_database_is_set_aside(self, tmp_path, content):
        path = tmp_path / f"{FINGERPRINT}.sqlite"
        path.write_bytes(content)
        store = FeatureStore(tmp_path, FINGERPRINT, 3)
        store.put([key(0)], some_rows([1], 3))
        assert store.known([key(0)]) == {key(0)}
        assert store.warnings == [
            f"The cache of feature rows {path} was damaged: it is now {FINGERPRINT}.damaged, and begun anew."
        ]
        assert (tmp_path / f"{FINGERPRINT}.damaged").read_bytes() == content
        store.close()
        assert FeatureStore(tmp_path, FINGERPRINT, 3).warnings == []

    def test_a_table_with_other_columns_is_set_aside(self, tmp_path):
        path = tmp_path / f"{FINGERPRINT}.sqlite"
        change(path, "CREATE TABLE rows (key BLOB, data BLOB)")
        store = FeatureStore(tmp_path, FINGERPRINT, 3)
        store.put([key(0)], some_rows([1], 3))
        assert len(store.warnings) == 1

    def test_a_file_that_breaks_in_use_is_begun_anew(self, tmp_path):
        store = FeatureStore(tmp_path, FINGERPRINT, 64)
        keys = [key(i) for i in range(500)]
        store.put(keys, some_rows([1] * 500, 64))
        store.close()
        with open(tmp_path / f"{FINGERPRINT}.sqlite", "r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * 100_000)
        store = FeatureStore(tmp_path, FINGERPRINT, 64)
        with pytest.raises(DamagedRows, match="the same command computes them anew"):
            store.get(keys)
        assert store.known(keys) == set()
        store.put(keys, some_rows([1] * 500, 64))
        assert torch.equal(store.get(keys).values, some_rows([1] * 500, 64).values)

    def test_rows_from_before_checksums_are_kept(self, tmp_path):
        path = tmp_path / f"{FINGERPRINT}.sqlite"
        store, keys = FeatureStore(tmp_path, FINGERPRINT, 4), [key(i) for i in range(5)]
        store.put(keys, some_rows([2] * 5, 4))
        store.close()
        change(path, "ALTER TABLE rows DROP COLUMN checksum")
        change(path, "UPDATE rows SET data = ? WHERE id = 2", b"short")
        change(path, "UPDATE rows SET m = 'two' WHERE id = 3")
        change(path, "UPDATE rows SET data = ? WHERE id = 4", np.full(8, np.nan, dtype=np.float32).tobytes())
        store = FeatureStore(tmp_path, FINGERPRINT, 4)
        assert store.known(keys) == {keys[0], keys[4]}
        assert torch.equal(store.get([keys[4]]).values, some_rows([2] * 5, 4).values[8:])
        store.close()
        change(path, "UPDATE rows SET m = 1 WHERE id = 1")
        with pytest.raises(DamagedRows):
            FeatureStore(tmp_path, FINGERPRINT, 4).get([keys[0]])

    def test_a_folder_that_cannot_be_made_is_explained(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(SelectronError, match="choose another folder with --cache"):
            FeatureStore(tmp_path / "file" / "inside", FINGERPRINT, 3)

    def test_the_cache_can_be_named(self, monkeypatch, tmp_path):
        monkeypatch.setenv("SELECTRON_CACHE", str(tmp_path))
        assert default_cache() == tmp_path
        monkeypatch.delenv("SELECTRON_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert default_cache() == tmp_path / "selectron"


FORK = multiprocessing.get_context("fork")  # the parent holds no connection, and importing anew would take seconds


def _write_for_ever(folder, reports):
    store = FeatureStore(folder, FINGERPRINT, 64)
    for batch in range(100_000):
        keys = [key(batch * 10 + i) for i in range(10)]
        store.put(keys, one_row_each(torch.arange(10.0).unsqueeze(1).expand(10, 64) + 10 * batch))
        reports.send(batch)


@pytest.mark.parametrize("batches", [0, 15, 60])
def test_a_killed_writer_leaves_whole_batches(tmp_path, batches):
    """SIGKILL: all that it reported is there, no batch is there in part, and the next process can go on."""
    reports, end = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_write_for_ever, args=(tmp_path, end))
    process.start()
    end.close()
    reported = -1
    while reported < batches:
        reported = reports.recv()
    process.kill()
    process.join()
    with contextlib.suppress(EOFError):
        while True:
            reported = reports.recv()
    store = FeatureStore(tmp_path, FINGERPRINT, 64)
    known = store.known([key(i) for i in range((reported + 5) * 10)])
    numbers = sorted(int(name, 16) for name in known)
    assert len(numbers) % 10 == 0
    assert len(numbers) >= 10 * (reported + 1)
    assert numbers == list(range(len(numbers)))
    values = store.get([key(i) for i in numbers]).values
    assert torch.equal(values[:, 0], torch.arange(float(len(numbers))))
    store.put([key(10**6)], one_row_each(torch.zeros(1, 64)))
    assert store.known([key(10**6)]) == {key(10**6)}
    store.close()


def _write_many(folder, first):
    store = FeatureStore(folder, FINGERPRINT, 8)
    for number in range(first, first + 200):
        store.put([key(number), key(10**6 + number % 50)], one_row_each(torch.full((2, 8), float(number % 50))))
    store.close()


def test_two_processes_can_write_at_once(tmp_path):
    workers = [FORK.Process(target=_write_many, args=(tmp_path, first)) for first in (0, 200)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    store = FeatureStore(tmp_path, FINGERPRINT, 8)
    keys = [key(i) for i in range(400)] + [key(10**6 + i) for i in range(50)]
    assert store.known(keys) == set(keys)
    values = store.get(keys).values[:, 0]
    assert torch.equal(values[:400], torch.arange(400.0) % 50)
    assert torch.equal(values[400:], torch.arange(50.0))


class Counting:
    """A map that notes what it is asked: the number of atoms and the sum of coordinates of each structure."""

    name, dim, settings, fingerprint = "counting", 2, {}, FINGERPRINT

    def __init__(self):
        self.batches = []

    def rows(self, structures):
        self.batches.append(len(structures))
        values = torch.tensor([[len(a), a.positions.sum()] for a in structures], dtype=torch.float64)
        return one_row_each(values)


def hashes_of(structures):
    return [structure_hash(atoms) for atoms in structures]


class TestExtract:
    def test_nothing_is_computed_twice(self, tmp_path):
        features, some = Counting(), structures()
        store = FeatureStore(tmp_path, FINGERPRINT, 2)
        first, failed = extract(features, some[:6], hashes_of(some[:6]), store)
        assert not failed
        asked = sum(features.batches)
        assert asked == 6
        again, _ = extract(features, some[:6], hashes_of(some[:6]), store)
        assert sum(features.batches) == asked
        assert torch.equal(first.values, again.values)
        both, _ = extract(features, some + some, hashes_of(some + some), store)
        assert sum(features.batches) == len(some)
        expected = torch.tensor([[len(a), a.positions.sum()] for a in some + some], dtype=torch.float32)
        torch.testing.assert_close(both.values, expected)

    def test_another_process_finds_the_rows(self, tmp_path):
        some = structures()
        extract(Counting(), some, hashes_of(some), FeatureStore(tmp_path, FINGERPRINT, 2))
        later = Counting()
        extract(later, some, hashes_of(some), FeatureStore(tmp_path, FINGERPRINT, 2))
        assert later.batches == []

    @pytest.mark.parametrize("batch_size", [1, 3, 100])
    def test_batches_are_no_larger_than_asked(self, batch_size):
        features, some = Counting(), structures()
        extract(features, some, hashes_of(some), FeatureStore(None, FINGERPRINT, 2), batch_size)
        assert max(features.batches) <= batch_size
        assert sum(features.batches) == len(some)

    @pytest.mark.parametrize(
        ("column", "value"),
        [
            ("data", b""),
            ("data", np.ones(2, "<f4").tobytes()),
            ("data", None),
            ("m", 0),
            ("m", "one"),
            ("m", -1),
            ("checksum", None),
            ("checksum", "x"),
            ("key", bytes(16)),
        ],
    )
    def test_damaged_rows_are_computed_anew_and_told_once(self, tmp_path, column, value):
        some = structures()
        hashes = hashes_of(some)
        store = FeatureStore(tmp_path, FINGERPRINT, 2)
        expected, _ = extract(Counting(), some, hashes, store)
        store.close()
        change(tmp_path / f"{FINGERPRINT}.sqlite", f"UPDATE OR REPLACE rows SET {column} = ? WHERE id = 3", value)
        if column != "key":
            change(tmp_path / f"{FINGERPRINT}.sqlite", f"UPDATE rows SET {column} = ? WHERE id = 5", value)
        store, features = FeatureStore(tmp_path, FINGERPRINT, 2), Counting()
        rows, failed = extract(features, some, hashes, store)
        assert torch.equal(rows.values, expected.values)
        assert not failed
        assert sum(features.batches) == (1 if column == "key" else 2)
        assert len(store.warnings) == (column != "key")
        assert all("2 structures" in line and "removed" in line for line in store.warnings)

    def test_every_flipped_bit_of_a_row_is_noticed(self, tmp_path):
        some = structures()
        hashes, path = hashes_of(some), tmp_path / f"{FINGERPRINT}.sqlite"
        store = FeatureStore(tmp_path, FINGERPRINT, 2)
        expected, _ = extract(Counting(), some, hashes, store)
        store.close()
        content = path.read_bytes()
        row = expected.take([2]).values.numpy().tobytes()
        place = content.index(row)
        for bit in range(8 * len(row)):
            changed = bytearray(content)
            changed[place + bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            store = FeatureStore(tmp_path, FINGERPRINT, 2)
            rows, _ = extract(Counting(), some, hashes, store)
            assert torch.equal(rows.values, expected.values)
            assert len(store.warnings) == 1
            store.close()

    def test_rows_do_not_depend_on_the_batch_size(self):
        potential = MacePotential(small_mace())
        features, some = EnergyNTKFeatures(potential, dim=64), structures()
        results = [
            extract(features, some, hashes_of(some), FeatureStore(None, features.fingerprint, 64), size)[0].values
            for size in (1, 3, None)
        ]
        for other in results[1:]:
            error = (other - results[0]).norm(dim=1)
            assert bool((error <= 1e-5 * results[0].norm(dim=1)).all())

    def test_rows_that_are_not_finite_are_reported_and_not_kept(self):
        class Broken(Counting):
            def rows(self, structures):
                rows = super().rows(structures)
                rows.values[[i for i, a in enumerate(structures) if "O" in a.symbols], 1] = float("nan")
                return rows

        some = [molecule("CH4"), molecule("H2O"), molecule("C2H6"), molecule("CO2")]
        hashes, store = hashes_of(some), FeatureStore(None, FINGERPRINT, 2)
        rows, failed = extract(Broken(), some, hashes, store)
        assert set(failed) == {hashes[1], hashes[3]}
        assert set(failed.values()) == {"its features are not finite"}
        assert rows.values[:, 0].tolist() == [5.0, 8.0]
        assert store.known(hashes) == {hashes[0], hashes[2]}
        repaired, failed = extract(Counting(), some, hashes, store)
        assert not failed
        assert repaired.values[:, 0].tolist() == [5.0, 3.0, 8.0, 3.0]

    def test_overlapping_atoms_fail_alone(self):
        potential = MacePotential(small_mace())
        features = EnergyNTKFeatures(potential, dim=64)
        good, bad = molecule("H2O"), Atoms("HH", np.zeros((2, 3)))
        hashes = hashes_of([bad, good])
        rows, failed = extract(features, [bad, good], hashes, FeatureStore(None, features.fingerprint, 64))
        assert set(failed) == {hashes[0]}
        alone = features.rows([good]).values
        torch.testing.assert_close(rows.values, alone, rtol=1e-4, atol=1e-5)

    def test_nothing_at_all(self):
        rows, failed = extract(Counting(), [], [], FeatureStore(None, FINGERPRINT, 2))
        assert rows.values.shape == (0, 2)
        assert failed == {}

    def test_rows_reach_the_disk_batch_by_batch(self, tmp_path):
        class Dying(Counting):
            def rows(self, structures):
                if len(self.batches) == 3:
                    raise KeyboardInterrupt
                return super().rows(structures)

        some = structures()
        hashes = hashes_of(some)
        with pytest.raises(KeyboardInterrupt):
            extract(Dying(), some, hashes, FeatureStore(tmp_path, FINGERPRINT, 2), 2)
        assert len(FeatureStore(tmp_path, FINGERPRINT, 2).known(hashes)) == 6

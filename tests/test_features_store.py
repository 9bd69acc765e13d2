"""Rows on disk, and the extraction that fills them."""

import contextlib
import multiprocessing

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from selectron.errors import SelectronError
from selectron.features import EnergyNTKFeatures, FeatureStore, default_cache, extract
from selectron.potentials import MacePotential
from selectron.rows import Rows, one_row_each
from selectron.structures import structure_hash
from small_maces import small_mace, structures

FINGERPRINT = "0123456789abcdef0123456789abcdef"


def key(number):
    return f"{number:032x}"


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
    def test_a_broken_file_is_explained(self, tmp_path, content):
        (tmp_path / f"{FINGERPRINT}.sqlite").write_bytes(content)
        with pytest.raises(SelectronError, match="is damaged: delete it"):
            FeatureStore(tmp_path, FINGERPRINT, 3)

    def test_a_file_that_breaks_in_use_is_explained(self, tmp_path):
        store = FeatureStore(tmp_path, FINGERPRINT, 64)
        keys = [key(i) for i in range(500)]
        store.put(keys, some_rows([1] * 500, 64))
        store.close()
        with open(tmp_path / f"{FINGERPRINT}.sqlite", "r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * 100_000)
        with pytest.raises(SelectronError, match=r"feature rows"):
            FeatureStore(tmp_path, FINGERPRINT, 64).get(keys)

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

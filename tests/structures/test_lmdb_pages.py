"""LMDB files read without trusting them: equal to liblmdb on whole files, a sentence on damaged ones."""

import numpy as np
import pytest

from selectron.structures.lmdb_pages import LmdbDamaged, LmdbFile

lmdb = pytest.importorskip("lmdb")


@pytest.fixture
def written(tmp_path):
    """A file with a tree of several levels: short values, values with pages of their own, some deleted again."""
    random, path = np.random.default_rng(0), tmp_path / "a.lmdb"
    content = {}
    with lmdb.open(str(path), subdir=False, map_size=1 << 26, sync=False) as environment:
        for start in range(0, 3000, 500):
            with environment.begin(write=True) as out:
                for number in range(start, start + 500):
                    key = str(number).encode() if number % 3 else random.bytes(1 + number % 90)
                    content[key] = random.bytes(int(random.choice([0, 10, 300, 5000])))
                    out.put(key, content[key])
        with environment.begin(write=True) as out:
            for key in list(content)[::7]:
                out.delete(key)
                del content[key]
    return path, content


def test_it_reads_what_liblmdb_wrote(written):
    path, content = written
    file = LmdbFile(path)
    assert file.entries == len(content)
    assert list(file) == sorted(content)
    assert all(file.get(key) == value for key, value in content.items())
    assert file.get(b"") is None
    assert file.get(b"no such key") is None
    assert file.get(b"\xff" * 500) is None
    file.close()


def test_damage_is_an_error_and_never_ends_the_process(written, tmp_path):
    path, content = written
    whole, random = path.read_bytes(), np.random.default_rng(1)
    keys, errors, damaged = sorted(content)[::40], 0, tmp_path / "damaged.lmdb"
    for _ in range(60):
        changed = bytearray(whole)
        for place in random.integers(0, len(whole) // 4096, 40) * 4096:  # headers and tables of pages
            changed[place + random.integers(0, 24)] = random.integers(0, 256)
        damaged.write_bytes(changed[: len(whole) if random.random() < 0.9 else int(random.integers(0, len(whole)))])
        try:
            file = LmdbFile(damaged)
        except LmdbDamaged:
            errors += 1
            continue
        for key in keys:
            try:
                file.get(key)
            except LmdbDamaged:
                errors += 1
        try:
            assert len(list(file)) < len(whole)
        except LmdbDamaged:
            errors += 1
        file.close()
    assert errors > 60


def test_an_empty_file_has_no_keys(tmp_path):
    lmdb.open(str(tmp_path / "a.lmdb"), subdir=False).close()
    assert list(LmdbFile(tmp_path / "a.lmdb")) == []
    assert LmdbFile(tmp_path / "a.lmdb").get(b"1") is None
    (tmp_path / "b.lmdb").write_bytes(b"no LMDB at all")
    with pytest.raises(LmdbDamaged, match=r"not there|does not begin"):
        LmdbFile(tmp_path / "b.lmdb")

"""Keys and values of an LMDB file, read without trusting a byte of it.

liblmdb maps the file into memory and follows its pointers as they are: a damaged page ends the process (SIGBUS, SIGABRT).
Here every place is checked before it is read. The layout is that of LMDB 0.9 (data version 1) on 64-bit little-endian
machines, as ``mdb.c`` describes it: pages of nodes in a B+ tree, values that are too long for a page on pages of their own.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from pathlib import Path

_MAGIC, _VERSION = 0xBEEFC0DE, 1
_HEAD = 16  # bytes of a page's header
_BRANCH, _LEAF, _OVERFLOW, _META = 1, 2, 4, 8
_BIG, _OTHER = 1, 6  # flags of a node: its value has pages of its own; it is a database of its own, or many values
_NOTHING = 2**64 - 1
_DEEPEST = 32


class LmdbDamaged(Exception):
    """The file is not what LMDB writes; the text says where."""


class LmdbFile:
    """The main database of the LMDB file ``path``, which must not be written to while it is open.

    Raises LmdbDamaged, also from every method.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            self._page_bytes = 0
            first = self._meta(0, 4096)
            self._page_bytes = first[1]
            last = max(first, self._meta(self._page_bytes, self._page_bytes))
            _, page_bytes, flags, self.entries, self._root, last_page = last
            if page_bytes != self._page_bytes or flags:
                raise LmdbDamaged("its two heads do not agree, or it is of a kind that is not known")
            needed = (last_page + 1) * page_bytes
            if needed > self._size:
                raise LmdbDamaged(f"it is truncated: {self._size} of {needed} bytes are there")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Lets the file go."""
        self._file.close()

    def get(self, key: bytes) -> bytes | None:
        """The value of ``key``, or None."""
        number = self._root
        for _ in range(_DEEPEST):
            if number == _NOTHING:
                return None
            page, nodes, leaf = self._page(number)
            keys = [self._key(page, node) for node in nodes]
            if leaf:
                place = bisect_left(keys, key)
                if place == len(keys) or keys[place] != key:
                    return None
                return self._value(page, nodes[place])
            # the first key of a branch page stands for all that come before the second
            number = self._child(page, nodes[max(0, bisect_right(keys, key, lo=1) - 1)])
        raise LmdbDamaged("its pages go round in a circle")

    def __iter__(self) -> Iterator[bytes]:
        """All keys in their order."""
        waiting = [] if self._root == _NOTHING else [self._root]
        left = self._size // self._page_bytes
        while waiting:
            left -= 1
            if left < 0:
                raise LmdbDamaged("its pages go round in a circle")
            page, nodes, leaf = self._page(waiting.pop())
            if leaf:
                yield from (self._key(page, node) for node in nodes)
            else:
                waiting += [self._child(page, node) for node in reversed(nodes)]

    def _meta(self, place: int, page_bytes: int) -> tuple[int, int, int, int, int, int]:
        """Of one of the two heads: transaction, bytes of a page, flags, entries, root page, last page."""
        page = self._read(place, min(page_bytes, 512))
        flags = struct.unpack_from("<H", page, 10)[0]
        magic, version = struct.unpack_from("<II", page, _HEAD)
        if magic != _MAGIC or not flags & _META:
            raise LmdbDamaged("it does not begin as an LMDB does")
        if version != _VERSION:
            raise LmdbDamaged(f"it is of version {version} of the format, and {_VERSION} is read")
        size = struct.unpack_from("<I", page, _HEAD + 24)[0]
        if not 512 <= size <= 65536 or size & (size - 1):
            raise LmdbDamaged(f"its pages cannot have {size} bytes")
        _, kind, _, _, _, _, entries, root = struct.unpack_from("<IHHQQQQQ", page, _HEAD + 24 + 48)
        last_page, transaction = struct.unpack_from("<QQ", page, _HEAD + 24 + 96)
        return transaction, size, kind, entries, root, last_page

    def _read(self, place: int, count: int) -> bytes:
        content = os.pread(self._file.fileno(), count, place) if place + count <= self._size else b""
        if len(content) < count:
            raise LmdbDamaged(f"{count} bytes at {place} are not there")
        return content

    def _page(self, number: int) -> tuple[bytes, tuple[int, ...], bool]:
        """A page, the places of its nodes in it, and whether it is a leaf."""
        page = self._read(number * self._page_bytes, self._page_bytes)
        named, _, flags, lower, upper = struct.unpack_from("<QHHHH", page)
        kind = flags & ~0x10  # written since the last time
        if named != number or kind not in (_BRANCH, _LEAF):
            raise LmdbDamaged(f"page {number} is none of its tree")
        count = (lower - _HEAD) // 2
        if not _HEAD <= lower <= upper <= self._page_bytes or (kind == _BRANCH and count < 1):
            raise LmdbDamaged(f"page {number} is damaged")
        nodes = struct.unpack_from(f"<{count}H", page, _HEAD)
        if nodes and not (upper <= min(nodes) and max(nodes) + 8 <= self._page_bytes):
            raise LmdbDamaged(f"page {number} is damaged")
        return page, nodes, kind == _LEAF

    @staticmethod
    def _key(page: bytes, node: int) -> bytes:
        size = struct.unpack_from("<H", page, node + 6)[0]
        key = page[node + 8 : node + 8 + size]
        if len(key) < size:
            raise LmdbDamaged("a key goes beyond its page")
        return key

    @staticmethod
    def _child(page: bytes, node: int) -> int:
        low, high, top = struct.unpack_from("<HHH", page, node)
        return int(low | high << 16 | top << 32)

    def _value(self, page: bytes, node: int) -> bytes:
        low, high, flags, key = struct.unpack_from("<HHHH", page, node)
        size, begin = low | high << 16, node + 8 + key
        if flags & _OTHER:
            raise LmdbDamaged("a value is a database of its own")
        if not flags & _BIG:
            value = page[begin : begin + size]
            if len(value) < size:
                raise LmdbDamaged("a value goes beyond its page")
            return value
        if begin + 8 > len(page):
            raise LmdbDamaged("a value goes beyond its page")
        number = struct.unpack_from("<Q", page, begin)[0]
        place = number * self._page_bytes
        named, _, kind = struct.unpack_from("<QHH", self._read(place, _HEAD))
        if named != number or not kind & _OVERFLOW:
            raise LmdbDamaged(f"page {number} holds no value")
        return self._read(place + _HEAD, size)

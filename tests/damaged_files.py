"""What can happen to a file on its way: flipped bits, lost ends, blocks of zeros, blocks that moved or came twice."""

import numpy as np


def mutants(content, count, seed):
    """``count`` damaged copies of the bytes ``content``, each different from it; the seed fixes them."""
    random = np.random.default_rng(seed)
    made = 0
    while made < count:
        damaged = _damaged(content, made % 6, random)
        if damaged != content:
            made += 1
            yield damaged


def _damaged(content, kind, random):
    place = int(random.integers(len(content)))
    length = int(random.integers(1, 1 + max(1, len(content) // 20)))
    changed = bytearray(content)
    if kind in (0, 1):
        changed[place] ^= 1 << int(random.integers(8))
    elif kind == 2:
        del changed[place:]
    elif kind == 3:
        changed[place : place + length] = bytes(len(changed[place : place + length]))
    elif kind == 4:
        changed[place:place] = changed[place : place + length]
    else:
        other = int(random.integers(len(content)))
        block = changed[other : other + length]
        changed[place : place + len(block)] = block
        del changed[len(content) :]
    return bytes(changed)

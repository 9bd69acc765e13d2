"""Sentences for the person at the keyboard that are no errors, from places that know nothing of a command line.

They go to the logger ``selectron``, which writes to standard error unless a program says otherwise.
"""

from __future__ import annotations

import logging

_said: set[str] = set()


def note(sentence: str) -> None:
    """Says ``sentence``, once in a process."""
    if sentence not in _said:
        _said.add(sentence)
        logging.getLogger("selectron").warning(sentence)

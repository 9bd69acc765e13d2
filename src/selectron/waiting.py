"""How the threads of OpenMP wait for each other. Imports nothing, as it has to act before PyTorch is imported."""

from __future__ import annotations

from collections.abc import MutableMapping


def wait_briefly(environment: MutableMapping[str, str]) -> None:
    """Threads that wait spin for a moment and then sleep, unless ``environment`` says otherwise.

    Spinning on is many times slower as soon as another program wants the cores, sleeping at once
    (OMP_WAIT_POLICY=PASSIVE) twice to four times as slow on an idle machine: docs/install.md has numbers.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", "10000")

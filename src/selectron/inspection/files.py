"""The inspection of files, with or without a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ase import Atoms

from selectron.errors import SelectronError
from selectron.inspection.look import Look
from selectron.inspection.result import Inspection
from selectron.structures import Checks, Pool
from selectron.structures.label_source import LabelKeys
from selectron.structures.label_values import LabelSource

if TYPE_CHECKING:
    from selectron.potentials import Potential
    from selectron.screening.progress import Progress

CHUNK = 256
AT_MOST = 2000


def inspect(
    files: Sequence[str | Path],
    model: Potential | str | Path | None = None,
    *,
    labels: LabelKeys | None = None,
    head: str | None = None,
    min_distance_A: float | None = None,
    at_most: int | None = AT_MOST,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Inspection:
    """What selectron sees in ``files``: structures, elements, labels, charges, repeats; with a model its errors too.

    Args:
        files: files, globs and folders, as :meth:`selectron.Pool.open` takes them; read once, in order.
        model: a potential, or what :func:`selectron.load_potential` takes; None: no model is asked, and torch is not imported.
        labels: keys of the labels, where they are to be named.
        head: of structures and of a model with several.
        min_distance_A: atoms closer than this overlap; None: 0.4.
        at_most: structures drawn with ``seed`` that the model is asked about; None: all.
        device: for a model that is loaded here; energies and forces are computed in float64.
        progress: told how far it is.

    Raises:
        SelectronError: a file is missing, unreadable, empty or in no known format, or the model cannot be loaded.
    """
    potential = None
    if model is not None:
        potential = _loaded(model, device, head) if isinstance(model, str | Path) else model
    elements = None if potential is None else potential.elements
    checks = Checks(elements) if min_distance_A is None else Checks(elements, min_distance_A=min_distance_A)
    with Pool.open(files) as pool:
        look = Look(pool, labels or LabelKeys(), checks, head)
        if progress is not None:
            progress.start("reading", len(pool))
        for chunk in pool.chunks(CHUNK):
            for place, entry in chunk:
                look.add(place, entry)
            if progress is not None:
                progress.advance(len(chunk))
        if progress is not None:
            progress.finish()
        found = look.result()
        if potential is not None:
            if found.labelled and found.trainable:
                found.why = _unknown_elements(look.lacking, potential)
                found.trainable = found.why is None
            from selectron.inspection.judgement import judge

            source = None if found.label_source is None else LabelSource(**found.label_source)  # type: ignore[arg-type]
            found.model = judge(
                potential,
                pool,
                look.places(source),
                source,
                at_most=at_most,
                seed=seed,
                lacking=look.lacking,
                progress=progress,
            )
        return found


def _unknown_elements(lacking: Iterable[str], potential: Potential) -> str | None:
    """What ``train`` would say of elements that the model does not know."""
    from selectron.training.labels import Labelled, check_elements

    atoms = Atoms([*lacking])
    try:
        check_elements(
            [Labelled(atoms, 0.0, atoms.positions)], potential.elements or atoms.numbers, model=potential.name
        )
    except SelectronError as error:
        return str(error)
    return None


def _loaded(model: str | Path, device: str, head: str | None) -> Potential:
    from selectron.potentials import load_potential

    return load_potential(model, device=device, dtype="float64", head=head)

"""Where the picks of a campaign lie: in the plane of its features, and over the backbone dihedrals of a peptide."""

from __future__ import annotations

import html
import math
import sqlite3
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, Normalize
from matplotlib.figure import Figure

from selectron.errors import SelectronError
from selectron.report.backbone import find_backbone, frame_dihedrals, residues
from selectron.report.campaign_style import ARM_NAMES, INK, ROUNDS, RULE, dress, sheet, svg
from selectron.report.landscape import plane_coverage
from selectron.report.map_data import FeatureMapData
from selectron.report.map_html import write_html
from selectron.report.projection import Projection
from selectron.report.ramachandran import ramachandran_coverage

if TYPE_CHECKING:
    from selectron.campaign.history import CampaignRecord, PickRecord

MOST = 8000  # structures of the background
IN_3D = 1200
CELLS = 25
_QUERY = 500


@dataclass(frozen=True)
class PickMap:
    """Structures in the plane of largest variance of the features of the last screening.

    | field       | shape   | meaning                                                       |
    |-------------|---------|---------------------------------------------------------------|
    | hashes      | n       | structure hashes                                              |
    | coordinates | (n, 2)  | position in the plane                                         |
    | explained   | (2,)    | fraction of the feature variance along each axis              |
    | known       |         | hashes of the initial training set                            |
    """

    hashes: tuple[str, ...]
    coordinates: np.ndarray
    explained: np.ndarray
    known: frozenset[str]


def read_map(record: CampaignRecord) -> PickMap | None:
    """The map from the feature rows that the last screening left in the campaign's folder; None where they are gone.

    A row may belong to a pool structure, a pick or the training set. Of more than 8,000 every so-manieth is drawn, all picks
    among them.
    """
    from selectron.structures import structure_hash

    stores = sorted((record.folder / "scratch" / "features").glob("*/*.sqlite"))
    if not stores:
        return None
    picks = {pick.structure_hash for arm in record.arms for one in arm.rounds for pick in one.picks}
    train = [structure_hash(atoms) for atoms in read_structures(record.train_path)]
    try:
        vectors = _vectors(stores, picks | set(train))
    except (sqlite3.Error, ValueError, KeyError):
        return None  # being written, or damaged: a map is not worth a report
    if len(vectors) < 3:
        return None
    hashes = tuple(vectors)
    rows = np.stack([vectors[name] for name in hashes])
    if not np.isfinite(rows).all():
        return None
    plane = Projection.of_batches([rows])
    return PickMap(hashes, plane.transform(rows), plane.explained, frozenset(train))


def _vectors(stores: Sequence[Path], wanted: set[str]) -> dict[str, np.ndarray]:
    """One vector a structure, as :func:`selectron.screening.outputs.draw` makes them."""
    import torch

    from selectron.acquisition import structure_embedding
    from selectron.rows import Rows

    found: dict[str, tuple[int, bytes]] = {}
    for store in stores:
        where = (
            f"file:{store.absolute().as_posix().replace('%', '%25').replace('?', '%3f').replace('#', '%23')}?mode=ro"
        )
        with closing(sqlite3.connect(where, uri=True, timeout=5.0)) as connection:
            every = [row[0] for row in connection.execute("SELECT key FROM rows ORDER BY id")]
            keep = every[:: max(1, math.ceil(len(every) / MOST))]
            chosen = list(dict.fromkeys([*keep, *(key for key in every if key.hex() in wanted)]))
            for start in range(0, len(chosen), _QUERY):
                keys = chosen[start : start + _QUERY]
                marks = ",".join("?" * len(keys))
                for key, m, data in connection.execute(f"SELECT key, m, data FROM rows WHERE key IN ({marks})", keys):
                    found.setdefault(key.hex(), (m, data))
    if not found:
        return {}
    counts = [m for m, _ in found.values()]
    dim = len(next(iter(found.values()))[1]) // (4 * counts[0])
    values = np.concatenate([np.frombuffer(data, "<f4").reshape(m, dim) for m, data in found.values()])
    rows = Rows(torch.from_numpy(values), torch.tensor(counts))
    single = all(count == 1 for count in counts)
    vectors = structure_embedding(rows, single=single).to(torch.float64)
    if not single:
        vectors = torch.nn.functional.normalize(vectors, dim=1)
    return dict(zip(found, vectors.numpy(), strict=True))


def read_structures(path: Path | None) -> list[Atoms]:
    """The structures of an artifact; none where it is None."""
    from selectron.structures import Pool

    if path is None:
        return []
    with Pool.open([path]) as pool:
        return pool[:]


def draw_map(record: CampaignRecord, found: PickMap) -> str:
    """A panel for each arm: candidates in grey, the training set hollow, picks coloured by round."""
    arms = [arm for arm in record.arms if any(one.picks for one in arm.rounds)]
    if not arms:
        return ""
    place = {name: i for i, name in enumerate(found.hashes)}
    chosen = [
        [(pick, place[pick.structure_hash]) for one in arm.rounds for pick in one.picks if pick.structure_hash in place]
        for arm in arms
    ]
    points = found.coordinates
    covered = plane_coverage([points[[i for _, i in pairs]] for pairs in chosen] + [points], cells=CELLS)
    training = np.array([name in found.known for name in found.hashes])
    last = max(one.round for arm in arms for one in arm.rounds)
    figure = sheet(4.1 * len(arms) + 0.5, 3.9)
    grid = figure.subplots(1, len(arms), squeeze=False, sharex=True, sharey=True)[0]
    norm = _round_norm(last)
    for axes, arm, pairs, cover in zip(grid, arms, chosen, covered, strict=False):
        axes.scatter(*points[~training].T, s=5, color=RULE, linewidths=0, rasterized=len(points) > 1500)
        axes.scatter(
            *points[training].T, s=9, facecolors="none", edgecolors=RULE, linewidths=0.7, rasterized=len(points) > 1500
        )
        where = points[[i for _, i in pairs]]
        rounds = [pick.round for pick, _ in pairs]
        axes.scatter(*where.T, s=26, c=rounds, cmap=ROUNDS, norm=norm, edgecolors=INK, linewidths=0.5, zorder=3)
        dress(axes, grid=False)
        axes.set_title(
            f"{ARM_NAMES[arm.name]}: {len(pairs):,} picks in {cover['cells_visited']:,} of "
            f"{covered[-1]['cells_visited']:,} occupied cells",
            loc="left",
            color=INK,
            fontsize=9,
        )
        axes.set_xlabel(f"component 1 ({found.explained[0]:.0%} of feature variance)")
    grid[0].set_ylabel(f"component 2 ({found.explained[1]:.0%})")
    _round_bar(figure, list(grid), norm, last)
    words = "; ".join(
        f"{ARM_NAMES[arm.name]}: {cover['cells_visited']} of {covered[-1]['cells_visited']} cells"
        for arm, cover in zip(arms, covered, strict=False)
    )
    caption = (
        f"The plane of largest variance of the features ({html.escape(record.config.features.name)}) in the last screening: "
        f"small dots are candidates, rings the initial training set, large dots picks. Cells: {CELLS} × {CELLS} over the plane."
    )
    return svg(figure, f"Map of candidates and picks. {words}.", caption=caption)


def _round_norm(last: int) -> Normalize:
    return BoundaryNorm(np.arange(0.5, last + 1), ROUNDS.N) if last <= 12 else Normalize(1, last)


def _round_bar(figure: Figure, axes: list[object], norm: Normalize, last: int) -> None:
    ticks = range(1, last + 1) if last <= 12 else None
    bar = figure.colorbar(ScalarMappable(norm, ROUNDS), ax=axes, ticks=ticks, fraction=0.03, pad=0.02)  # type: ignore[arg-type]
    bar.set_label("round", fontsize=8.5, color=INK)
    bar.ax.tick_params(labelsize=8, labelcolor=INK, color=RULE, which="both")
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)


def draw_dihedrals(record: CampaignRecord) -> str:
    """Ramachandran maps of the picks of each arm where all are one peptide; "" elsewhere."""
    arms = [(arm, [pick for one in arm.rounds for pick in one.picks]) for arm in record.arms]
    arms = [(arm, picks) for arm, picks in arms if picks]
    every = [pick.structure for _, picks in arms for pick in picks]
    if not every or len({atoms.numbers.tobytes() for atoms in every}) != 1:
        return ""
    try:
        if not len(residues(every[0])):
            return ""
        backbone = find_backbone(every[0])
    except SelectronError:
        return ""
    last = max(pick.round for _, picks in arms for pick in picks)
    norm = _round_norm(last)
    figure = sheet(3.7 * len(arms) + 0.6, 3.7)
    grid = figure.subplots(1, len(arms), squeeze=False, sharex=True, sharey=True)[0]
    words = []
    for axes, (arm, picks) in zip(grid, arms, strict=True):
        frames = [pick.structure for pick in picks]
        phi, psi = frame_dihedrals(frames, backbone.phi), frame_dihedrals(frames, backbone.psi)
        phi, psi = (np.asarray(angle).reshape(len(frames), -1) for angle in (phi, psi))
        colour = np.repeat([pick.round for pick in picks], phi.shape[1])
        wrapped = [(angle.ravel() + 180) % 360 - 180 for angle in (phi, psi)]
        axes.scatter(*wrapped, s=22, c=colour, cmap=ROUNDS, norm=norm, edgecolors=INK, linewidths=0.4)
        axes.set(
            xlim=(-180, 180), ylim=(-180, 180), aspect="equal", xticks=range(-180, 181, 90), yticks=range(-180, 181, 90)
        )
        dress(axes)
        cover = ramachandran_coverage(phi, psi)
        axes.set_title(f"{ARM_NAMES[arm.name]}: {cover:.1%} of 10° × 10° bins", loc="left", color=INK, fontsize=9)
        axes.set_xlabel("φ (°)")
        words.append(f"{ARM_NAMES[arm.name]} covers {cover:.1%}")
    grid[0].set_ylabel("ψ (°)")
    _round_bar(figure, list(grid), norm, last)
    return svg(
        figure,
        f"Ramachandran map of the picks: {'; '.join(words)}.",
        caption="Backbone dihedrals of the picks, coloured by round.",
    )


def interactive_map(record: CampaignRecord, found: PickMap) -> str | None:
    """The chemiscope page of :func:`selectron.report.map_html.write_html` with candidates, training set and the picks of the
    selected arm; None where no structure could be read.
    """
    picks = {pick.structure_hash: pick for one in record.selected.rounds for pick in one.picks}
    structures = _known_structures(record, found, picks)
    if not structures:
        return None
    indices = [i for i, name in enumerate(found.hashes) if name in structures]
    names = [found.hashes[i] for i in indices]
    kinds = ["pick" if name in picks else "train" if name in found.known else "pool" for name in names]
    order = {name: i for i, name in enumerate(picks)}
    blank = float("nan")

    def of_picks(field: str) -> np.ndarray:
        values = [getattr(picks[name], field) if name in picks else None for name in names]
        return np.array([blank if value is None else float(value) for value in values])

    labels = [
        f"{Path(str(structures[n].info.get('source', '?'))).name} {structures[n].info.get('source_index', '')}"
        for n in names
    ]
    data = FeatureMapData(
        coordinates=found.coordinates[indices],
        kind=np.array(kinds),
        variance=of_picks("variance"),
        rank=np.array([order.get(name, -1) for name in names])
        + np.array([1 if name in picks else 0 for name in names]),
        structures=[structures[name] for name in names],
        labels=labels,
        explained=found.explained,
        title=f"{record.config.name}: picks of the selected arm",
        subtitle=f"features {record.config.features.name}, selector {record.config.selector.name}; variances as of the round",
        extra={"round": of_picks("round"), "score": of_picks("score"), "distance to the nearest": of_picks("distance")},
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "map.html"
        write_html(data, path, limit=IN_3D)
        return path.read_text(encoding="utf-8")


def _known_structures(record: CampaignRecord, found: PickMap, picks: dict[str, PickRecord]) -> dict[str, Atoms]:
    from selectron.campaign.candidates import Index
    from selectron.structures import Pool, structure_hash

    wanted = set(found.hashes)
    known = {structure_hash(atoms): atoms for atoms in read_structures(record.train_path)}
    known = {name: atoms for name, atoms in known.items() if name in wanted}
    name = record.facts.get("index")
    if record.config.pool is not None and name is not None:
        try:
            index = Index.read(record.artifacts.path(name))
            with Pool.open(list(record.config.pool.files)) as pool:
                keys = [index.hash(i) for i in range(len(index))]
                chosen = [i for i, key in enumerate(keys) if key in wanted and key not in picks]
                for i in chosen[:: max(1, math.ceil(len(chosen) / IN_3D))]:
                    place = int(index.places[i])
                    atoms = pool[place].copy()
                    atoms.info = {"source": pool.source(place).path, "source_index": pool.source(place).index}
                    if structure_hash(atoms) == keys[i]:  # the file may have changed since
                        known[keys[i]] = atoms
        except (SelectronError, OSError, ValueError, IndexError, KeyError):
            pass  # the pool has gone: picks and training set are shown without it
    for one in record.selected.rounds[-1:]:
        if one.sampled is not None:
            sampled = {structure_hash(atoms): atoms for atoms in read_structures(one.sampled.path)}
            known |= {key: atoms for key, atoms in sampled.items() if key in wanted}
    known |= {name: pick.structure for name, pick in picks.items() if name in wanted}
    return known

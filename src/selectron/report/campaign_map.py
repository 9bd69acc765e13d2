"""Where the picks of a campaign lie: in the plane of its features, and over the backbone dihedrals of a peptide."""

from __future__ import annotations

import html
import math
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, Normalize
from matplotlib.figure import Figure

from selectron.errors import SelectronError
from selectron.report.backbone import Backbone, frame_dihedrals, residues
from selectron.report.campaign_points import PickMap, read_structures
from selectron.report.campaign_style import ARM_NAMES, INK, ROUNDS, RULE, dress, sheet, svg
from selectron.report.landscape import plane_coverage
from selectron.report.map_data import FeatureMapData
from selectron.report.map_html import write_html
from selectron.report.ramachandran import ramachandran_coverage

if TYPE_CHECKING:
    from selectron.campaign.records import ArmRecord, CampaignRecord, PickRecord

IN_3D = 1200
CELLS = 25
JUDGED = 100  # structures in which a backbone is looked for


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
        size = 5 if len(points) > 500 else 14
        axes.scatter(*points[~training].T, s=size, color=RULE, linewidths=0, rasterized=len(points) > 1500)
        axes.scatter(
            *points[training].T,
            s=size + 4,
            facecolors="none",
            edgecolors=RULE,
            linewidths=0.7,
            rasterized=len(points) > 1500,
        )
        where = points[[i for _, i in pairs]]
        rounds = [pick.round for pick, _ in pairs]
        axes.scatter(*where.T, s=26, c=rounds, cmap=ROUNDS, norm=norm, edgecolors=INK, linewidths=0.5, zorder=3)
        dress(axes, grid=False)
        axes.set_title(
            f"{ARM_NAMES[arm.name]}: {_counted(pairs, arm)} in {cover['cells_visited']:,} of "
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
        f"small dots are {_candidates(record)}, rings the initial training set, large dots picks. "
        f"Cells: {CELLS} × {CELLS} over the plane."
    )
    return svg(figure, f"Map of candidates and picks. {words}.", caption=caption)


def _counted(pairs: Sequence[object], arm: ArmRecord) -> str:
    every = sum(len(one.picks) for one in arm.rounds)
    count = f"{len(pairs):,}" if len(pairs) == every else f"{len(pairs):,} of {every:,}"
    return f"{count} pick{'' if count == '1' else 's'}"


def _candidates(record: CampaignRecord) -> str:
    if record.config.pool is not None:
        return "candidates"
    return "what the selected arm sampled in that round" + (
        "; the other picks come from samples of other rounds and of the twin" if record.random else ""
    )


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
    backbone = _backbone_of(record, every)
    if backbone is None:
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


def _backbone_of(record: CampaignRecord, picks: Sequence[Atoms]) -> Backbone | None:
    """The backbone that most of the picks, and of what was sampled first, have; None where they are no peptide.

    Picks are the odd ones out: in one that was torn apart there is no backbone, or another.
    """
    same = picks[0].numbers.tobytes()
    sampled = [one.sampled for one in record.selected.rounds if one.sampled is not None]
    structures = [*picks[:JUDGED], *(read_structures(sampled[0].path)[:JUDGED] if sampled else [])]
    found = [residues(atoms) for atoms in structures if atoms.numbers.tobytes() == same]
    votes = Counter((one.phi.tobytes(), one.psi.tobytes()) for one in found if len(one))
    if not votes:
        return None
    ((phi, psi), _), *_ = votes.most_common(1)
    return next(one for one in found if (one.phi.tobytes(), one.psi.tobytes()) == (phi, psi))


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
        pool_name="pool" if record.config.sampling is None else "sampled",
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
            index = Index.read(record.artifacts.whole(name))
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

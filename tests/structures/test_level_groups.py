"""Groups of levels of theory: mixtures are found to the structure, and sets of one level give none."""

import numpy as np
import pytest
from ase.io import read

from selectron.structures.level_groups import (
    UNEXPLAINED_eV_ATOM,
    about_levels,
    about_unexplained,
    level_groups,
    symbols_of,
    unexplained_eV_atom,
)

ATOMS = np.array([-16.5, -1036.0, -1488.0, -2045.0])  # H, C, N, O: eV an atom of all-electron DFT
VALENCE = np.array([5.6, 987.0, 1418.0, 1943.0])  # what is missing in a tight-binding energy
HYBRID = np.array([-0.05, 0.35, 0.45, 0.6])  # one functional beside another
SYMBOLS = ["H", "C", "N", "O"]


def molecules(random, count):
    """(count, 4): compositions like those of small organic molecules."""
    heavy = random.multinomial(random.integers(3, 8, count), [0.6, 0.2, 0.2])
    return np.column_stack([2 + random.integers(0, 2 * heavy.sum(axis=1) + 1), heavy]).astype(float)


def energies(random, counts, spread_eV_atom):
    sizes = counts.sum(axis=1)
    return counts @ ATOMS + random.normal(0.0, spread_eV_atom, len(counts)) * sizes


def found(groups):
    return {frozenset(one.indices.tolist()) for one in groups}


def parts(mask):
    return {frozenset(np.flatnonzero(side).tolist()) for side in (mask, ~mask)}


@pytest.mark.parametrize("share", [0.5, 0.1])
@pytest.mark.parametrize("seed", range(3))
def test_tight_binding_beside_dft_is_found_with_its_offsets(share, seed):
    random = np.random.default_rng(seed)
    counts = molecules(random, 120)
    other = random.random(120) < share
    groups = level_groups(counts, energies(random, counts, 0.15) + other * (counts @ VALENCE))
    assert found(groups) == parts(other)
    larger_is_dft = other.sum() <= 60
    sign = 1.0 if larger_is_dft else -1.0
    assert groups[0].offset_eV_atom == 0.0
    assert np.allclose(groups[1].offset_by_element, sign * VALENCE, rtol=0.01, atol=1.0)
    sentence = about_levels(groups, SYMBOLS)
    assert sentence.startswith(f"{len(groups[1].indices)} of 120 structures (the first is {groups[1].indices[0]})")
    assert "two levels of theory" in sentence
    assert ("above" if larger_is_dft else "below") in sentence


def test_the_same_offset_for_every_structure_is_found():
    """As where two keys hold energies from two zeros: no sum over atoms."""
    random = np.random.default_rng(1)
    counts = molecules(random, 60)
    other = np.arange(60) % 2 == 1
    groups = level_groups(counts, energies(random, counts, 0.15) + 500.0 * other)
    assert found(groups) == parts(other)


def test_small_offsets_are_seen_through_a_models_residuals_only():
    random = np.random.default_rng(2)
    counts = molecules(random, 80)
    other = np.arange(80) % 3 == 0
    residuals = random.normal(0.0, 0.012, 80) * counts.sum(axis=1) + other * (counts @ HYBRID)
    labels = energies(random, counts, 0.15) + residuals
    assert level_groups(counts, labels) == []
    groups = level_groups(counts, labels, residuals)
    assert found(groups) == parts(other)
    assert np.allclose(groups[1].offset_by_element[:2], HYBRID[:2], atol=0.05)
    assert "where model and composition put the others" in about_levels(groups, SYMBOLS, model=True)


def test_one_stoichiometry_gives_the_offset_an_atom_and_leaves_elements_open():
    random = np.random.default_rng(3)
    counts = np.tile([10.0, 6.0, 2.0, 2.0], (40, 1))
    other = np.arange(40) < 12
    groups = level_groups(counts, energies(random, counts, 0.02) - 13.2 * 20 * other)
    assert found(groups) == parts(other)
    assert groups[1].offset_eV_atom == pytest.approx(-13.2, abs=0.05)
    assert np.isnan(groups[1].offset_by_element).all()
    assert about_levels(groups, SYMBOLS) == (
        f"12 of 40 structures (the first is 0) have energies about {-groups[1].offset_eV_atom:.3g} eV/atom below what "
        "the others' compositions explain: two levels of theory in one set? Train on one of them."
    )


def test_three_levels_are_three_groups():
    random = np.random.default_rng(4)
    counts = molecules(random, 150)
    level = random.integers(0, 3, 150)
    groups = level_groups(counts, energies(random, counts, 0.15) + level * (counts @ VALENCE))
    assert found(groups) == {frozenset(np.flatnonzero(level == i).tolist()) for i in range(3)}


def test_what_the_composition_explains_is_no_second_level():
    """Two levels on two stoichiometries: no energy can tell."""
    random = np.random.default_rng(5)
    counts = np.repeat([[6.0, 3.0, 0.0, 3.0], [6.0, 3.0, 0.0, 0.0]], 30, axis=0)
    shift = np.repeat([0.0, 40.0], 30)
    assert level_groups(counts, energies(random, counts, 0.1) + shift) == []


@pytest.mark.parametrize("depth_eV", [2.0, 4.0, 11.0])
def test_reactants_and_products_of_one_reaction_are_one_level(depth_eV):
    random = np.random.default_rng(6)
    counts = np.tile([6.0, 2.0, 0.0, 0.0], (60, 1))
    basins = np.repeat([0.0, depth_eV], 30)
    assert level_groups(counts, energies(random, counts, 0.002) + basins) == []


def test_ions_are_explained_by_their_charge():
    random = np.random.default_rng(7)
    counts = molecules(random, 60)
    charge = np.arange(60) % 2
    labels = energies(random, counts, 0.02) + 25.0 * charge
    assert level_groups(np.tile(counts[:1], (60, 1)), labels - counts @ ATOMS)
    assert level_groups(counts, labels, states=charge.tolist()) == []


def test_random_scatter_of_any_shape_and_size_is_one_level():
    random = np.random.default_rng(8)
    for size in (6, 9, 15, 40):
        for _ in range(2):
            counts = molecules(random, size)
            for noise in (random.normal(size=size), random.uniform(size=size), random.standard_t(2, size)):
                assert level_groups(counts, counts @ ATOMS + 0.2 * noise * counts.sum(axis=1)) == []


def test_too_few_to_be_told_apart_still_scatter_more_than_bonds_do():
    """Six molecules with four elements: no division can be judged, but nothing of one level scatters so."""
    random = np.random.default_rng(9)
    counts = np.array([[4, 1, 0, 0], [2, 0, 0, 1], [3, 0, 1, 0], [4, 1, 0, 1], [6, 2, 0, 1], [5, 1, 1, 0]], dtype=float)
    labels = energies(random, counts, 0.1)
    assert unexplained_eV_atom(counts, labels) < 0.5
    assert about_unexplained(unexplained_eV_atom(counts, labels)) == ""
    mixed = labels + 500.0 * (np.arange(6) % 2)
    assert unexplained_eV_atom(counts, mixed) > UNEXPLAINED_eV_ATOM
    assert "more than any bond holds" in about_unexplained(unexplained_eV_atom(counts, mixed))


def test_real_sets_of_one_level_give_no_alarm_and_mixtures_of_them_do(shared_data):
    """Every labelled file; two levels on two stoichiometries (yarp) are explained by the composition."""
    random = np.random.default_rng(10)
    seen = 0
    for path in sorted(shared_data.glob("*.xyz")):
        frames = [one for one in read(path, ":200") if one.calc is not None and "energy" in one.calc.results]
        if len(frames) < 15:
            continue
        numbers = np.unique(np.concatenate([one.numbers for one in frames]))
        counts = np.array([(one.numbers[:, None] == numbers).sum(axis=0) for one in frames], dtype=float)
        labels = np.array([one.get_potential_energy() for one in frames])
        assert level_groups(counts, labels) == [], path.name
        seen += 1
        if len(np.unique(counts, axis=0)) < len(frames) / 2:
            other = random.random(len(frames)) < 0.5
            groups = level_groups(counts, labels + other * (counts @ (0.98 * numbers**2.4 * 13.0)))
            assert len(groups) == 2, path.name
            assert "two levels" in about_levels(groups, symbols_of(numbers))
    assert seen >= 10

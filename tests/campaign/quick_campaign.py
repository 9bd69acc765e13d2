"""A whole campaign that takes seconds: a small MACE, molecules, an ASE calculator as oracle, a trainer of one linear fit.

Run as a script it is a server: it imports everything once, then forks a process for each campaign folder that it reads
from its standard input (after a tab: the largest size of a file that this process may write), so that a test can kill
campaigns at random moments without waiting for imports.
"""

import errno
import os
import resource
import sys
import traceback
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.io import write

FORMULAE = ("H2O", "CH4", "CO2", "CH3OH", "C2H4", "H2CO")


@contextmanager
def history_rewritten(folder):
    """The campaign's database, in which stages may be changed; in the end each has the checksum of what it then holds."""
    from selectron.campaign.state import _COLUMNS, FILE
    from selectron.checked_rows import connect

    with closing(connect(str(folder / FILE))) as connection, connection:
        yield connection
        connection.execute(f"UPDATE stages SET checksum = row_checksum({', '.join(_COLUMNS)})")


class CountedEMT(EMT):
    """Effective-medium theory that notes each call in the file $CALLS, and fails for structures of one formula.

    It fails for all while the environment has $BROKEN, and finds the disk full while it has $FULL.
    """

    def __init__(self, fails=None, slow_s=0.0):
        super().__init__()
        self.fails, self.slow_s = fails, slow_s

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        import time

        from selectron.structures import structure_hash

        with open(os.environ["CALLS"], "a") as stream:
            stream.write(structure_hash(atoms) + "\n")
        time.sleep(self.slow_s)
        if "FULL" in os.environ:
            raise OSError(errno.ENOSPC, "No space left on device")
        if "BROKEN" in os.environ:
            raise RuntimeError("the licence has run out")
        if atoms.get_chemical_formula() == self.fails:
            raise RuntimeError("the electrons do not converge")
        super().calculate(atoms, list(properties), list(system_changes))


def rattled(count, seed):
    random = np.random.default_rng(seed)
    structures = []
    for i in range(count):
        atoms = molecule(FORMULAE[i % len(FORMULAE)])
        atoms.positions += random.normal(0, 0.1, atoms.positions.shape)
        atoms.info["family"] = f"{FORMULAE[i % len(FORMULAE)]}-{i // 12}"
        structures.append(atoms)
    return structures


def labelled_by_emt(structures):
    for atoms in structures:
        atoms.calc = EMT()
        atoms.get_potential_energy()
        atoms.get_forces()
    return structures


BASE = {
    "seed": 3,
    "pool": {"files": ["pool.extxyz"]},
    "model": {"file": "tiny.model"},
    "train": {"files": ["train.extxyz"]},
    "test": {"files": ["test.extxyz"]},
    "validation": {"files": ["validation.extxyz"]},
    "features": {"name": "activation", "dim": 16},
    "selector": {"name": "maxdet"},
    "budget": {"labels": 6, "per_round": 3},
    "baseline": "random",
}


def prepare(folder, model, *, fails=None, slow_s=0.0, **changes):
    """Files of a campaign in ``folder`` and its YAML; ``changes`` replace sections. Gives the YAML's path."""
    import yaml

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.model").write_bytes(Path(model).read_bytes())
    write(folder / "pool.extxyz", rattled(30, 1))
    for seed, (name, count) in enumerate({"train": 6, "test": 6, "validation": 6}.items(), start=2):
        structures = labelled_by_emt(rattled(count, seed))
        structures[0].info["config_weight"] = 0.5
        write(folder / f"{name}.extxyz", structures)
    arguments = {"fails": fails, "slow_s": slow_s}
    oracle = {"kind": "ase", "calculator": "quick_campaign:CountedEMT", "arguments": arguments}
    sections = {**BASE, "oracle": oracle, **changes}
    path = folder / "campaign.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in sections.items() if value is not None}))
    return path


def quick_fine_tune(model, train, valid, options, folder, *, on_progress=None):
    """The atomic energies of the model, fitted to the labels by least squares: a training of a tenth of a second."""
    import torch

    from selectron.potentials import load_potential
    from selectron.potentials.mace_files import load_mace
    from selectron.training.evaluate import errors
    from selectron.training.fine_tune import FineTuned
    from selectron.training.references import compositions

    potential = load_potential(model, dtype="float64")
    valid = valid or train
    before = errors(potential, valid)
    found = errors(potential, train)
    table = compositions([atoms.numbers for atoms in train], potential.atomic_numbers)
    shift, *_ = np.linalg.lstsq(table, -found.energy_errors_eV, rcond=None)
    new = load_mace(model)
    with torch.no_grad():
        new.atomic_energies_fn.atomic_energies += torch.as_tensor(shift)
    path = Path(folder) / "fine_tuned.model"
    torch.save(new, path)
    after = before.shifted(compositions([atoms.numbers for atoms in valid], potential.atomic_numbers) @ shift)
    return FineTuned(path, [], 0, 0.0, 0.0, None, before, before, after, len(train), len(valid), [])


def begin_in(yaml_path, folder):
    """Begins the campaign of ``yaml_path`` in ``folder``."""
    from selectron.campaign.run import begin
    from selectron.config.campaign import CampaignConfig
    from selectron.config.load import load_yaml

    begin(load_yaml(yaml_path, CampaignConfig), Path(yaml_path).read_text(), Path(folder))


def run_quickly(folder, watcher=None):
    """Runs the campaign in ``folder`` with the quick trainer; oracle calls are noted beside the folder."""
    from selectron.campaign.run import run_campaign

    os.environ["CALLS"] = f"{folder}.calls"

    run_campaign(Path(folder), watcher=watcher, fine_tune=quick_fine_tune)


def story(folder):
    """All that a campaign did, without times and costs: inputs, picks, labels, models, errors, reasons, in order.

    Keys are hashes of all inputs, those of models included: equal stories mean equal bytes.
    """
    from selectron.campaign.state import CampaignState

    state = CampaignState(Path(folder), read_only=True)
    try:
        return [(stage.name, stage.arm, stage.round, stage.key, _timeless(stage.output)) for stage in state.stages()]
    finally:
        state.close()


def _timeless(value):
    if isinstance(value, dict):
        return {key: _timeless(one) for key, one in value.items() if key not in {"wall_s", "core_s", "time"}}
    return [_timeless(one) for one in value] if isinstance(value, list) else value


def serve():
    import selectron.campaign.loop
    import selectron.potentials
    import selectron.training.fine_tune  # noqa: F401

    print("ready", flush=True)
    for line in sys.stdin:
        folder, _, limit = line.strip().partition("\t")
        pid = os.fork()
        if pid == 0:
            code = 0
            os.setpgid(0, 0)  # so that its engines can be killed with it
            try:
                if limit:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
                run_quickly(folder)
            except BaseException as error:
                code = 2 if type(error).__name__ == "SelectronError" else 1
                with open(f"{folder}.said", "w") as stream:
                    stream.write(str(error))
                if code == 1:
                    traceback.print_exc()
            os._exit(code)
        with suppress(OSError):  # whoever of the two comes first
            os.setpgid(pid, pid)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()

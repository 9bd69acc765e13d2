"""An ASE calculator that does to each element what it was made to do, and notes each time that it is asked."""

import errno
import os
import shutil
import signal
import subprocess
import time
from typing import ClassVar

import numpy as np
from ase.calculators.calculator import Calculator, all_changes


class Strange(Calculator):
    """A spring to the origin; He hangs, Ne is a segmentation fault, Ar is not a number, Kr raises, Xe starts a program
    and hangs, Rn fails every first time.

    ``note``: a file that gets a line for each structure (formula, x of the first atom, process id).
    """

    implemented_properties = ("energy", "forces")

    def __init__(self, note=None, seconds=0.0, stiffness=1.0):
        super().__init__()
        self.note, self.seconds, self.stiffness = note, seconds, stiffness

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        first = atoms.symbols[0]
        times = 0
        if self.note:
            with open(self.note, "a+") as stream:
                stream.write(f"{atoms.symbols} {atoms.positions[0, 0]:.6f} {os.getpid()}\n")
                stream.seek(0)
                times = sum(line.startswith(str(atoms.symbols)) for line in stream)
        time.sleep(self.seconds)
        if first == "He":
            time.sleep(1000)
        if first == "Ne":
            print("about to crash", flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        if first == "Kr":
            raise RuntimeError("the licence server is asleep")
        if first == "Xe":
            child = subprocess.Popen(["sleep", "1000"])
            with open(self.note, "a") as stream:
                stream.write(f"child 0 {child.pid}\n")
            child.wait()
        if first == "Rn" and times == 1:
            raise RuntimeError("not at the first time")
        r = atoms.positions
        self.results["energy"] = 0.5 * self.stiffness * float((r**2).sum())
        self.results["forces"] = -self.stiffness * r
        if first == "Ar":
            self.results["forces"] = np.full_like(r, np.nan)


class Held(Calculator):
    """Like a program that stays open: what it says depends on how often it was asked, and it has to be closed in the end."""

    implemented_properties = ("energy", "forces")
    closed = 0

    def __init__(self):
        super().__init__()
        self.asked = 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        if atoms.symbols[0] == "Kr":
            with open(os.path.join(self.directory, "held.out"), "w") as stream:
                stream.write("*" * 70 + "\n *  [ABORT]  the licence server is asleep   *\n" + "*" * 70 + "\n")
            raise RuntimeError("no answer")
        self.results = {"energy": float(self.asked), "forces": np.zeros((len(atoms), 3))}
        self.asked += 1

    def close(self):
        type(self).closed += 1


class Volume(Calculator):
    """The volume of the cell as the energy, periodic or not."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": abs(np.linalg.det(atoms.cell.array)), "forces": np.zeros((len(atoms), 3))}


class Vandal(Strange):
    """As Strange, but bad for the engine that it runs in.

    Li removes the engine's folder and is labelled, Be removes it and raises, Na breaks the process for all that come, K holds
    60 MB more each time, Mg finds the disk full until the file ``room`` is there.
    """

    held: ClassVar = []
    broken = False

    def __init__(self, room=None, **others):
        super().__init__(**others)
        self.room = room

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        first = atoms.symbols[0]
        if type(self).broken:
            raise RuntimeError("the context is broken")
        if first in ("Li", "Be"):
            shutil.rmtree(os.getcwd())
        if first == "Be":
            raise RuntimeError("where am I?")
        if first == "Na":
            type(self).broken = True
        if first == "K":
            self.held.append(np.ones(60_000_000, dtype=np.uint8))
        if first == "Mg" and not os.path.exists(self.room):
            raise OSError(errno.ENOSPC, "No space left on device")

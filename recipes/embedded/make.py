"""Make the embedded model and pool from ``smiles.txt``: ``python recipes/embedded/make.py``.

| stage     | does                                                               | leaves in ``work/``             |
|-----------|--------------------------------------------------------------------|---------------------------------|
| thermal   | RDKit conformers, GFN2-xTB dynamics at 300 K and 500 K             | ``thermal-{train,valid,test}.xyz`` |
| reactive  | the pool: hot dynamics, bond scans, proton transfers, path images  | ``pool.extxyz.gz``              |
| training  | a MACE on the thermal structures, with mace-torch's own command    | ``embedded_stagetwo.model``     |
| export    | the files of the package                                           | (in ``src/selectron/embedded``) |
| measure   | errors in and out of distribution, ethanol dynamics                | ``errors.json``                 |
| cards     | the model card and the data card                                   | (in ``src/selectron/embedded``) |

A stage whose output exists and whose inputs did not change is left out. To make some stages again, and only those, name
them on the command line.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PACKAGE = HERE.parents[1] / "src" / "selectron" / "embedded"
STAGES = {  # stage: what it leaves behind, and the stages whose results it uses
    "thermal": (HERE / "work" / "thermal-test.xyz", ()),
    "reactive": (HERE / "work" / "pool.extxyz.gz", ()),
    "training": (HERE / "work" / "embedded_stagetwo.model", ("thermal",)),
    "export": (PACKAGE / "embedded.model", ("thermal", "reactive", "training")),
    "measure": (HERE / "work" / "errors.json", ("export",)),
    "cards": (PACKAGE / "MODEL_CARD.md", ("measure",)),
}


def main() -> None:
    """Run the stages in order, each in its own process on one thread, so that results do not depend on the cores."""
    named = sys.argv[1:]
    if unknown := set(named) - STAGES.keys():
        sys.exit(f"No stage is called {', '.join(sorted(unknown))}; the stages are {', '.join(STAGES)}.")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    made: set[str] = set()
    for stage, (output, inputs) in STAGES.items():
        wanted = stage in named if named else not output.exists() or not made.isdisjoint(inputs)
        print(f"{stage}: {'running' if wanted else 'left as it is'}", flush=True)
        if wanted:
            subprocess.run([sys.executable, str(HERE / f"{stage}.py")], env=environment, check=True)
            made.add(stage)


if __name__ == "__main__":
    main()

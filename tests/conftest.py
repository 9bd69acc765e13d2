"""Fixtures that every test may use."""

import os
import signal
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("SELECTRON_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def _folder(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"needs the folder {folder} with real {name} (set SELECTRON_SHARED to the folder that holds it)")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real structures with reference energies and forces; skips the test where it is absent."""
    return _folder("data")


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """Folder of pretrained MACE models; skips the test where it is absent."""
    return _folder("models")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A randomly initialised MACE for H, C and O, as mace-torch saves one."""
    import torch

    from small_maces import small_mace

    path = tmp_path_factory.mktemp("model") / "tiny.model"
    torch.save(small_mace(hidden_irreps="4x0e", correlation=2), path)
    return path


@pytest.fixture
def command_line(capfd):
    """Runs a command line; gives exit code, standard output and standard error."""
    from selectron.cli.app import main

    def run_it(line):
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as ended:
                main(line.split())
        finally:
            signal.signal(signal.SIGTERM, handler)
        out, err = capfd.readouterr()
        return ended.value.code or 0, out, err

    return run_it

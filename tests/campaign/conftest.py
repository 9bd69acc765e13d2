"""Fixtures of campaigns."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
if str(HERE) not in sys.path:  # the oracle's engine imports the calculator by name
    sys.path.insert(0, str(HERE))


class Server:
    """Runs campaigns in processes of their own; see ``quick_campaign.py``."""

    def __init__(self):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "quick_campaign.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self.process.stdout.readline() == "ready\n"

    def start(self, folder, largest_file=""):
        """Starts the campaign in ``folder``, which may write no larger file than so many bytes; gives the process."""
        self.process.stdin.write(f"{folder}\t{largest_file}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self):
        """Exit code of the campaign that was started last."""
        return int(self.process.stdout.readline())


@pytest.fixture(scope="session")
def server():
    """A process that forks campaigns."""
    one = Server()
    yield one
    one.process.stdin.close()
    one.process.wait()


@pytest.fixture(scope="session")
def quick_yaml(tmp_path_factory, tiny_model):
    """The YAML of a quick campaign, its files beside it."""
    from quick_campaign import prepare

    return prepare(tmp_path_factory.mktemp("quick"), tiny_model)


@pytest.fixture(scope="session")
def undisturbed(server, quick_yaml, tmp_path_factory):
    """The folder of a quick campaign that nobody disturbed."""
    from quick_campaign import begin_in

    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    begin_in(quick_yaml, folder)
    server.start(folder)
    assert server.wait() == 0
    return folder

"""Executors keep one contract: results, errors, threads, and an end that leaves nothing behind."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Executor
from pathlib import Path

import pytest
from ase.build import molecule

from selectron.errors import SelectronError
from selectron.execution import ExecutionOptions, ParslOptions, make_executor, threads_of, workers_of
from selectron.oracles import LabelStore, label_structures, parse_oracle

HERE = Path(__file__).parent


def options(kind, tmp_path=None, workers=2):
    return ExecutionOptions(
        kind=kind, workers=workers, threads=1, parsl=ParslOptions(folder=tmp_path or Path(), jobs=1)
    )


@pytest.mark.parametrize("kind", ["serial", "threads", "processes", pytest.param("parsl", marks=pytest.mark.slow)])
def test_results_and_errors_come_back_and_workers_are_where_they_should_be(kind, tmp_path):
    if kind == "parsl":
        pytest.importorskip("parsl")
    with make_executor(options(kind, tmp_path)) as executor:
        assert isinstance(executor, Executor)
        assert workers_of(executor) == (1 if kind == "serial" else 2)
        assert threads_of(executor) == 1
        assert [future.result() for future in [executor.submit(pow, i, 2) for i in range(5)]] == [0, 1, 4, 9, 16]
        assert sorted(executor.map(abs, [-3, -1])) == [1, 3]
        with pytest.raises(ZeroDivisionError):
            executor.submit(divmod, 1, 0).result()
        elsewhere = executor.submit(os.getpid).result() != os.getpid()
        assert elsewhere == (kind in ("processes", "parsl"))
        if elsewhere:
            assert executor.submit(os.getenv, "OMP_NUM_THREADS").result() == "1"
        if kind == "threads":
            assert executor.submit(threading.get_ident).result() != threading.get_ident()


def test_processes_end_with_the_one_that_made_them():
    script = (
        "import os, time\n"
        "from selectron.execution import ExecutionOptions, make_executor\n"
        "if __name__ == '__main__':\n"
        "    executor = make_executor(ExecutionOptions(kind='processes', workers=2, threads=1))\n"
        "    print(executor.submit(os.getpid).result(), flush=True)\n"
        "    executor.submit(time.sleep, 1000)\n"
        "    time.sleep(1000)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    worker = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait()
    for _ in range(400):
        stat = Path(f"/proc/{worker}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.05)
    else:
        pytest.fail("a worker outlived its master")


def test_an_error_inside_the_block_does_not_wait_for_a_long_task():
    def leave():
        with make_executor(options("processes")) as executor:
            executor.submit(os.getpid).result()
            executor.submit(time.sleep, 1000)
            raise KeyError

    with pytest.raises(KeyError):
        leave()


@pytest.mark.slow
def test_labels_by_parsl_workers_are_labels(tmp_path):
    pytest.importorskip("parsl")
    structures = [molecule(name) for name in ("H2O", "CH4", "NH3", "CH3")]
    with (
        LabelStore(tmp_path / "l.db") as store,
        make_executor(options("parsl", tmp_path / "parsl")) as executor,
    ):
        found = list(label_structures(structures, parse_oracle("gfn2-xtb"), store, executor=executor))
        assert sorted(one.index for one in found) == [0, 1, 2, 3]
        assert sum(one.label is not None for one in found) == 3
        assert store.spent()[:2] == (3, 1)


def test_a_parsl_configuration_of_the_users_is_found_by_name(tmp_path, monkeypatch):
    pytest.importorskip("parsl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(HERE)
    wanted = ExecutionOptions(kind="parsl", parsl=ParslOptions(config="cluster:config"))
    with make_executor(wanted) as executor:
        assert workers_of(executor) == 2
        assert executor.submit(pow, 3, 2).result() == 9
    for path, says in [("cluster:nothing", "no Parsl configuration"), ("cluster:not_a_config", "is no parsl.Config")]:
        with pytest.raises(SelectronError, match=says):
            make_executor(ExecutionOptions(kind="parsl", parsl=ParslOptions(config=path)))


def test_a_slurm_description_becomes_jobs_of_that_size(tmp_path):
    pytest.importorskip("parsl")
    from selectron.execution.with_parsl import described_config

    wanted = ExecutionOptions(
        kind="parsl",
        workers=8,
        threads=4,
        parsl=ParslOptions(
            provider="slurm", partition="short", account="abc", nodes=2, jobs=3, walltime="02:00:00", folder=tmp_path
        ),
    )
    (executor,) = described_config(wanted).executors
    assert (executor.max_workers_per_node, executor.cores_per_worker) == (8, 4)
    provider = executor.provider
    assert (provider.partition, provider.account, provider.walltime) == ("short", "abc", "02:00:00")
    assert (provider.nodes_per_block, provider.max_blocks, provider.cores_per_node) == (2, 3, 32)
    assert "OMP_NUM_THREADS=4" in provider.worker_init


def slurm_is_up():
    if shutil.which("sinfo") is None or shutil.which("sbatch") is None:
        return False
    said = subprocess.run(["sinfo", "-h", "-o", "%t"], capture_output=True, text=True, timeout=20)
    return "idle" in said.stdout


def on_slurm(tmp_path):
    """One worker in a job of the cluster's default partition."""
    activate = f"export PATH={Path(sys.executable).parent}:$PATH"
    return ExecutionOptions(
        kind="parsl",
        workers=1,
        threads=1,
        parsl=ParslOptions(provider="slurm", walltime="00:10:00", worker_init=activate, folder=tmp_path / "parsl"),
    )


def jobs():
    said = subprocess.run(["squeue", "-h", "-o", "%i %t"], capture_output=True, text=True, check=True)
    return [line.split()[0] for line in said.stdout.splitlines() if not line.endswith("CG")]


@pytest.mark.slow
@pytest.mark.skipif(not slurm_is_up(), reason="no SLURM with an idle node here")
def test_labels_are_made_in_slurm_jobs_which_end_with_the_executor(tmp_path):
    pytest.importorskip("parsl")
    structures = [molecule(name) for name in ("H2O", "CH4", "NH3")]
    before = set(jobs())
    with LabelStore(tmp_path / "labels.db") as store, make_executor(on_slurm(tmp_path)) as executor:
        assert executor.submit(os.getenv, "SLURM_JOB_ID").result(timeout=120) is not None
        assert len(set(jobs()) - before) == 1
        found = list(label_structures(structures, parse_oracle("gfn2-xtb"), store, executor=executor))
        here = list(label_structures(structures, parse_oracle("gfn1-xtb"), store))
        assert all(one.label is not None for one in [*found, *here])
    deadline = time.monotonic() + 60
    while set(jobs()) - before and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not set(jobs()) - before


@pytest.mark.slow
@pytest.mark.skipif(not slurm_is_up(), reason="no SLURM with an idle node here")
def test_a_cancelled_slurm_job_costs_no_label(tmp_path):
    """The job is cancelled between labels: the structures of the first half are reused, the rest is labelled anew."""
    pytest.importorskip("parsl")
    structures = [molecule(name) for name in ("H2O", "CH4", "NH3", "HF")]
    with LabelStore(tmp_path / "labels.db") as store:
        with make_executor(on_slurm(tmp_path)) as executor:
            job = executor.submit(os.getenv, "SLURM_JOB_ID").result(timeout=120)
            first = list(label_structures(structures[:2], parse_oracle("gfn2-xtb"), store, executor=executor))
            assert all(one.label is not None for one in first)
            subprocess.run(["scancel", job], check=True)
        with make_executor(on_slurm(tmp_path)) as executor:
            found = list(label_structures(structures, parse_oracle("gfn2-xtb"), store, executor=executor))
    assert sorted((one.index, one.reused) for one in found) == [(0, True), (1, True), (2, False), (3, False)]
    assert all(one.label is not None for one in found)

"""The recipes for several machines, run on two network namespaces; Slurm's two commands are stood in for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ado_stream.record import read_run
from benchmarks.bench_multinode import NETWORK, NODES, inside

pytestmark = pytest.mark.fault
ROOT = Path(__file__).parents[2]
ADDRESS = f"{NETWORK}.2"
SRUN = f"""#!/bin/bash
shift # --kill-on-bad-exit
ip netns exec {NODES[0]} env SLURM_NODEID=0 "$@" & first=$!
ip netns exec {NODES[1]} env SLURM_NODEID=1 "$@" & second=$!
wait $first && wait $second
"""
SCONTROL = f"""#!/bin/bash
printf '%s\\n' {ADDRESS} {NETWORK}.3
"""


@pytest.fixture
def config(settings: dict, tmp_path: Path) -> Path:
    """Four steps of nano."""
    changed = {**settings, "model": {"preset": "nano"}, "train": {"steps": 4, "device": "cpu"}}
    changed["data"] = {**settings["data"], "canonical_nodes": 2}
    changed["policy"] = {"name": "natural"}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(changed))
    return path


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """PATH with this Python's torchrun and the stand-ins."""
    stand_ins = tmp_path / "bin"
    stand_ins.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (stand_ins / name).write_text(text)
        (stand_ins / name).chmod(0o755)
    python = Path(sys.executable).parent
    paths = os.pathsep.join(str(ROOT / part) for part in (".", "kernels", "model"))
    return {
        **os.environ,
        "PATH": f"{stand_ins}{os.pathsep}{python}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": paths,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "eth0",
        "RANKS_PER_NODE": "1",
        "SLURM_JOB_NODELIST": "ado-node[0-1]",
        "SLURM_NNODES": "2",
    }


def check(run_dir: Path) -> None:
    run, lines = read_run(run_dir)
    assert (run["world_size"], run["canonical_nodes"]) == (2, 2)
    assert [line["step"] for line in lines["step"]] == [0, 1, 2, 3]
    assert (run_dir / "checkpoints" / "step_00000004" / "COMMIT.json").exists()


def test_ranks_get_ten_minutes_to_save_after_sigterm(environment: dict[str, str], tmp_path: Path):
    stand_in = tmp_path / "bin" / "torchrun"
    stand_in.write_text('#!/bin/bash\necho "$TORCH_ELASTIC_SHUTDOWN_TIMEOUT $*"')
    stand_in.chmod(0o755)
    command = ["benchmarks/recipes/node.sh", "0", "1", "localhost", "run.yaml", "train.steps=3"]
    done = subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.startswith("600 --nnodes 1 --node-rank 0 ")
    assert done.stdout.endswith("train run.yaml train.steps=3\n")


def test_one_command_a_node(nodes, config: Path, environment: dict[str, str], settings: dict):
    command = ["benchmarks/recipes/node.sh"]
    started = [
        inside(node, *command, str(rank), "2", ADDRESS, str(config), env=environment, cwd=ROOT)
        for rank, node in enumerate(NODES)
    ]
    assert [process.wait(120) for process in started] == [0, 0]
    check(Path(settings["run_dir"]))


def test_slurm(nodes, config: Path, environment: dict[str, str], settings: dict):
    command = ["bash", "benchmarks/recipes/slurm.sbatch", str(config), "log.every_steps=1"]
    subprocess.run(command, env=environment, cwd=ROOT, check=True, timeout=240)
    check(Path(settings["run_dir"]))

"""The examples for several machines, run on two network namespaces; Slurm's two commands are stood in for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ado_stream.record import RunRecord, read_run
from tests.train.network import NETWORK, NODES, inside

pytestmark = pytest.mark.fault
ROOT = Path(__file__).parents[2]
ADDRESS = f"{NETWORK}.2"
SRUN = f"""#!/bin/bash
shift # --kill-on-bad-exit
ip netns exec {NODES[0]} env SLURM_NODEID=0 "$@" & first=$!
ip netns exec {NODES[1]} env SLURM_NODEID=1 "$@" & second=$!
if [ -n "$STOPPED_RUN" ]; then # out of time
    until grep -q '"kind":"step"' "$STOPPED_RUN/record.jsonl"; do sleep 0.05; done 2>/dev/null
    kill -TERM $first $second
fi
wait $first; code=$?
wait $second && exit $code
"""
SCONTROL = f"""#!/bin/bash
case $1 in
show) printf '%s\\n' {ADDRESS} {NETWORK}.3 ;;
requeue) echo "$2" >>"${{0%/*}}/requeued" ;;
esac
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
        "GLOO_SOCKET_IFNAME": "eth0",
        "RANKS_PER_NODE": "1",
        "SLURM_JOB_NODELIST": "ado-node[0-1]",
        "SLURM_NNODES": "2",
        "SLURM_JOB_ID": "17",
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
    command = ["examples/node.sh", "0", "1", "localhost", "run.yaml", "train.steps=3"]
    done = subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.startswith("600 --nnodes 1 --node-rank 0 ")
    assert done.stdout.endswith("train run.yaml train.steps=3\n")


def test_one_command_a_node(nodes, config: Path, environment: dict[str, str], settings: dict):
    command = ["examples/node.sh"]
    started = [
        inside(node, *command, str(rank), "2", ADDRESS, str(config), env=environment, cwd=ROOT)
        for rank, node in enumerate(NODES)
    ]
    assert [process.wait(120) for process in started] == [0, 0]
    check(Path(settings["run_dir"]))


def test_slurm(nodes, config: Path, environment: dict[str, str], settings: dict, tmp_path: Path):
    command = ["bash", "examples/slurm.sbatch", str(config), "log.every_steps=1"]
    subprocess.run(command, env=environment, cwd=ROOT, check=True, timeout=240)
    check(Path(settings["run_dir"]))
    assert not (tmp_path / "bin" / "requeued").exists()


def test_slurm_out_of_time(nodes, config: Path, environment: dict[str, str], settings: dict, tmp_path: Path):
    """Both torchruns return 1, as they do after SIGTERM; the run has saved and the job is queued again."""
    command = ["bash", "examples/slurm.sbatch", str(config), "train.steps=100000"]
    stopped = {**environment, "STOPPED_RUN": settings["run_dir"]}
    subprocess.run(command, env=stopped, cwd=ROOT, check=True, timeout=240)
    (stop,) = [event["step"] for event in read_run(settings["run_dir"])[1]["event"] if event["name"] == "stop"]
    assert (Path(settings["run_dir"]) / "checkpoints" / f"step_{stop:08d}" / "COMMIT.json").exists()
    assert (tmp_path / "bin" / "requeued").read_text() == "17\n"


STOP_3, STOP_7, DONE = (("event", step, name) for step, name in ((3, "stop"), (7, "stop"), (9, "done")))


@pytest.mark.parametrize(
    ("before", "after", "code", "requeued"),
    [
        (None, STOP_3, 1, True),
        (STOP_3, STOP_7, 1, True),
        (STOP_3, STOP_3, 1, False),  # it did not get to begin: it would be queued for ever
        (STOP_3, DONE, 0, False),
        (STOP_3, ("step", 5, "of which it died"), 1, False),
        (None, None, 1, False),
    ],
)
def test_slurm_queues_again_what_stopped(before, after, code, requeued, config, environment, settings, tmp_path):
    """The ranks are stood in for by the record that they leave."""
    record, left = Path(settings["run_dir"]) / "record.jsonl", tmp_path / "left"
    for folder, line in ((record.parent, before), (left, after)):
        if line is not None:
            with RunRecord(folder) as written:
                written.write("run", version=1)
                written.write(line[0], step=line[1], name=line[2], detail={})
    srun = f"""#!/bin/bash
mkdir -p {record.parent}
[ ! -d {left} ] || cp {left}/record.jsonl {record}
exit {code}
"""
    (tmp_path / "bin" / "srun").write_text(srun)
    command = ["bash", "examples/slurm.sbatch", str(config), "log.every_steps=1"]
    done = subprocess.run(command, env=environment, cwd=ROOT, check=False)
    assert done.returncode == (0 if requeued else code)
    assert (tmp_path / "bin" / "requeued").exists() == requeued


def test_slurm_leaves_a_wrong_config_to_the_ranks(config: Path, environment: dict[str, str], tmp_path: Path):
    (tmp_path / "bin" / "srun").write_text("#!/bin/bash\necho ranks; exit 1\n")
    command = ["bash", "examples/slurm.sbatch", str(config), "train.zzz=1"]
    done = subprocess.run(command, env=environment, cwd=ROOT, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "ranks\n", "")

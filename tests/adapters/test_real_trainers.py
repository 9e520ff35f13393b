"""The examples with the real trainers, killed and resumed: the batches, mixtures and losses of a run left alone.

They need `pip install torchtitan ai2-olmo-core megatron-core`; where one is missing its test is left out and counted.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STEPS, SAVED_AT, KILLED_AT = 20, 10, 13  # of the examples; they save every 10 steps


def run(example, log, *arguments, num_ranks=1, kill_at_step=-1) -> int:
    """The exit code of an example under torchrun; `log`.RANK is what its loaders did (recorded.py)."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    command += [ROOT / "tests/adapters/recorded.py", log, ROOT / "examples" / example, *arguments]
    environment = {**os.environ, "KILL_AT_STEP": str(kill_at_step)}
    return subprocess.run(list(map(str, command)), env=environment, timeout=500, check=False).returncode


def lines(log, rank):
    return [json.loads(line) for line in Path(f"{log}.{rank}").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("example", "num_ranks", "options"),
    [
        pytest.param("torchtitan_train.py", 1, (), marks=pytest.mark.package("torchtitan")),
        pytest.param("olmo_core_train.py", 1, (), marks=pytest.mark.package("olmo_core")),
        pytest.param("megatron_core_train.py", 1, (), marks=pytest.mark.package("megatron")),
        pytest.param(
            "megatron_core_train.py", 4, ("--tensor", "2", "--pipeline", "2"), marks=pytest.mark.package("megatron")
        ),
        pytest.param("megatron_core_train.py", 2, (), marks=pytest.mark.package("megatron")),
    ],
)
def test_a_killed_run_resumes_with_the_same_batches(tiny_corpus, tmp_path, example, num_ranks, options):
    whole, first, resumed = (tmp_path / f"{name}.log" for name in ("whole", "first", "resumed"))
    assert run(example, whole, tiny_corpus, tmp_path / "whole", *options, num_ranks=num_ranks) == 0
    arguments = (tiny_corpus, tmp_path / "killed", *options)
    assert run(example, first, *arguments, num_ranks=num_ranks, kill_at_step=KILLED_AT) not in (0, signal.SIGTERM)
    assert run(example, resumed, *arguments, num_ranks=num_ranks) == 0
    observed_tokens = 0
    for rank in range(num_ranks):
        if Path(f"{whole}.{rank}").exists():  # with Megatron some ranks do not read
            every = lines(whole, rank)
            assert [line["step"] for line in every if "step" in line] == list(range(STEPS))
            assert len({tuple(line["mixture"]) for line in every if "step" in line}) > 4, "the mixture changes"
            assert lines(resumed, rank) == [
                line for line in every if line.get("step", line.get("observed")) >= SAVED_AT
            ]
            observed_tokens += sum(sum(line["counts"]) for line in every if "counts" in line)
    assert observed_tokens == STEPS * 8 * 32

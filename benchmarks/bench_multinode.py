"""Does each node download only its own lanes' shards? Two nodes x two ranks on one machine, from an S3 endpoint.

Nodes are network namespaces joined by a bridge, each with its own cache folder and its own torchrun; a third namespace
holds moto's S3 server. Every rank logs the ids of its rows; together they must be the batches of one process. Needs
root and iproute2. Prints shards. Bar: each node downloads at most half of the shards, plus one a domain where a shard
straddles lanes.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import bar, size, write_result
from benchmarks.stream_data import BATCH, CREDENTIALS, NUM_DOMAINS, our_domains, write_domains
from tests.train.network import NETWORK, NODES, STORE, inside, network

PORT = 5558
STEPS, SAMPLES, SHARD_BYTES = size((400, 2500, 1 << 19), (4, 64, 1 << 10))
ENVIRONMENT = {
    **CREDENTIALS,
    "S3_ENDPOINT_URL": f"http://{NETWORK}.1:{PORT}",
    "GLOO_SOCKET_IFNAME": "eth0",
    "OMP_NUM_THREADS": "1",
}

UPLOAD = "import sys; from benchmarks.stream_data import upload; upload(*sys.argv[1:])"


def reading_rank(folder: str) -> None:
    """What torchrun starts on every rank: reads STEPS batches, writes its rows and what its node has downloaded."""
    import torch.distributed as dist

    import ado_stream as ado

    dist.init_process_group("gloo")
    node = os.environ["GROUP_RANK"]
    cache = Path(folder) / f"cache{node}"
    domains = our_domains(cache, [f"domain{k}" for k in range(NUM_DOMAINS)], "s3://corpus")
    dataset = ado.AdaptiveStreamingDataset(domains, global_batch_size=BATCH, canonical_nodes=2, mixture_lag=None)
    rows = []
    for batch in dataset:
        rows.append(batch["tokens"][:, :3].tolist())
        if batch["step"] == STEPS - 1:
            break
    dataset.close()
    dist.barrier()
    (Path(folder) / f"rank{dist.get_rank()}.json").write_text(json.dumps(rows))
    dist.destroy_process_group()


def run_nodes(folder: Path) -> None:
    """One torchrun in each node's namespace; raises when one fails."""
    environment = {**os.environ, **ENVIRONMENT}
    launched = []
    for number, node in enumerate(NODES):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=2"]
        meeting = [f"--node-rank={number}", f"--master-addr={NETWORK}.2", "--master-port=29511"]
        program = ["-m", "benchmarks.bench_multinode", "--rank", str(folder)]
        launched.append(inside(node, *launcher, *meeting, *program, env=environment))
    if any(process.wait(timeout=300) for process in launched):
        raise RuntimeError("a node failed; its output is above")


def main() -> None:
    """Prints and writes the shards each node downloaded, and whether the rows are those of one process."""
    if os.geteuid() or not shutil.which("ip"):
        sys.exit("multinode: needs root and iproute2, since its nodes are network namespaces.")
    import ado_stream as ado

    with tempfile.TemporaryDirectory() as name, network():
        folder = Path(name)
        names = write_domains(folder / "data", SAMPLES, "zstd", SHARD_BYTES)
        environment = {**os.environ, **ENVIRONMENT}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        server = inside(STORE, sys.executable, "-m", "moto.server", "-H", "0.0.0.0", "-p", str(PORT), **quiet)
        try:
            upload = [sys.executable, "-c", UPLOAD, str(folder / "data"), ENVIRONMENT["S3_ENDPOINT_URL"]]
            if inside(NODES[0], *upload, env=environment).wait(timeout=120):
                raise RuntimeError("the upload failed; its output is above")
            run_nodes(folder)
        finally:
            server.terminate()
            server.wait()
        domains = our_domains(folder / "data", names)
        alone = ado.AdaptiveStreamingDataset(domains, global_batch_size=BATCH, canonical_nodes=2, mixture_lag=None)
        ranks = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(4)]
        equal = all(
            batch["tokens"][:, :3].tolist() == [row for rank in ranks for row in rank[step]]
            for step, batch in zip(range(STEPS), alone, strict=False)
        )
        alone.close()
        total = len(list((folder / "data").glob("*/shard.*.zstd")))
        shards = {node: len(list((folder / f"cache{k}").glob("*/shard.*.mds"))) for k, node in enumerate(NODES)}
    share = {node: count / total for node, count in shards.items()}
    found = {
        "shards": {"all": total, **shards},
        "share_of_shards": share,
        "rows_equal_one_process": equal,
        "steps": STEPS,
    }
    most = bar("most shards of a node", max(shards.values()), total // 2 + NUM_DOMAINS)
    write_result("multinode", found, [most, bar("rows equal one process's", equal, True, at_least=True)])


if __name__ == "__main__":
    reading_rank(sys.argv[2]) if sys.argv[1:2] == ["--rank"] else main()

"""Does each node download only its own lanes' shards? Two nodes x two ranks on one machine, from an S3 endpoint.

Nodes are network namespaces joined by a bridge, each with its own cache folder and its own torchrun; a third namespace
holds moto's S3 server. Every rank logs the ids of its rows; together they must be the batches of one process. Needs
root and iproute2. Bar: each node downloads at most half of the shards, plus one a domain where a shard straddles lanes.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from benchmarks.common import write_result
from benchmarks.stream_data import NUM_DOMAINS, write_domains

NODES = ("ado-node0", "ado-node1")
STORE = "ado-store"
NETWORK = "10.213.77"
PORT = 5558
STEPS = 400
BATCH = 64
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "S3_ENDPOINT_URL": f"http://{NETWORK}.1:{PORT}",
    "GLOO_SOCKET_IFNAME": "eth0",
    "OMP_NUM_THREADS": "1",
}

UPLOAD = """
import boto3, pathlib, sys
client = boto3.client("s3", endpoint_url=sys.argv[2])
client.create_bucket(Bucket="corpus")
root = pathlib.Path(sys.argv[1])
for path in sorted(path for path in root.rglob("*") if path.is_file()):
    client.upload_file(str(path), "corpus", str(path.relative_to(root)))
"""


def ip(*words: str) -> None:
    """Runs iproute2's `ip`."""
    subprocess.run(["ip", *words], check=True)


@contextmanager
def network():
    """Three namespaces on one bridge: the store at .1, the nodes at .2 and .3."""
    names = (STORE, *NODES)
    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", STORE, "link", "add", "bridge", "type", "bridge")
        ip("-n", STORE, "addr", "add", f"{NETWORK}.1/24", "dev", "bridge")
        ip("-n", STORE, "link", "set", "bridge", "up")
        for number, node in enumerate(NODES):
            port = f"port{number}"
            ip("-n", STORE, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", node)
            ip("-n", STORE, "link", "set", port, "master", "bridge", "up")
            ip("-n", node, "addr", "add", f"{NETWORK}.{number + 2}/24", "dev", "eth0")
            ip("-n", node, "link", "set", "eth0", "up")
        yield
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)


def inside(namespace: str, *command: str, **options) -> subprocess.Popen:
    """Starts a command in a namespace."""
    return subprocess.Popen(["ip", "netns", "exec", namespace, *command], **options)


def reading_rank(folder: str) -> None:
    """What torchrun starts on every rank: reads STEPS batches, writes its rows and what its node has downloaded."""
    import torch.distributed as dist

    import ado_stream as ado

    dist.init_process_group("gloo")
    node = os.environ["GROUP_RANK"]
    cache = Path(folder) / f"cache{node}"
    domains = [
        ado.Domain(f"domain{k}", remote=f"s3://corpus/domain{k}", local=str(cache / f"domain{k}"))
        for k in range(NUM_DOMAINS)
    ]
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
    import ado_stream as ado

    with tempfile.TemporaryDirectory() as name, network():
        folder = Path(name)
        names = write_domains(folder / "data", 2500, "zstd", shard_bytes=1 << 19)
        environment = {**os.environ, **ENVIRONMENT}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        server = inside(STORE, sys.executable, "-m", "moto.server", "-H", "0.0.0.0", "-p", str(PORT), **quiet)
        try:
            time.sleep(8)
            upload = [sys.executable, "-c", UPLOAD, str(folder / "data"), ENVIRONMENT["S3_ENDPOINT_URL"]]
            if inside(NODES[0], *upload, env=environment).wait(timeout=120):
                raise RuntimeError("the upload failed; its output is above")
            run_nodes(folder)
        finally:
            server.terminate()
            server.wait()
        domains = [ado.Domain(n, local=str(folder / "data" / n)) for n in names]
        alone = ado.AdaptiveStreamingDataset(domains, global_batch_size=BATCH, canonical_nodes=2, mixture_lag=None)
        ranks = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(4)]
        equal = True
        for step, batch in zip(range(STEPS), alone, strict=False):
            equal &= batch["tokens"][:, :3].tolist() == [row for rank in ranks for row in rank[step]]
        alone.close()
        total = len(list((folder / "data").glob("*/shard.*.zstd")))
        shards = {node: len(list((folder / f"cache{k}").glob("*/shard.*.mds"))) for k, node in enumerate(NODES)}
    write_result(
        "multinode",
        {
            "shards": {"all": total, **shards},
            "share_of_shards": {node: count / total for node, count in shards.items()},
            "rows_equal_one_process": equal,
            "steps": STEPS,
            "bars": {"shards of a node": total // 2 + NUM_DOMAINS, "rows_equal_one_process": True},
        },
    )


if __name__ == "__main__":
    reading_rank(sys.argv[2]) if sys.argv[1:2] == ["--rank"] else main()

"""Small MDS data sets whose tokens say where they come from, and runs over them."""

from contextlib import contextmanager

import numpy as np

SEQ_LEN = 15
SAMPLES = (700, 64, 300, 5, 1)


def write_domain(folder, number, samples, compression=None, shard_bytes=4096, hashes=("xxh64",)):
    """Samples of 16 tokens: [domain, sample number low, high, noise ...]."""
    from tests.mds_writer import MDSWriter

    rng = np.random.default_rng(number)
    columns = {"tokens": f"ndarray:uint16:{SEQ_LEN + 1}"}
    with MDSWriter(
        out=str(folder), columns=columns, size_limit=shard_bytes, hashes=list(hashes), compression=compression
    ) as writer:
        for sample in range(samples):
            row = rng.integers(0, 60000, SEQ_LEN + 1)
            row[:3] = number, sample % 60000, sample // 60000
            writer.write({"tokens": row.astype(np.uint16)})


def changing_mixture(step, num_domains):
    """Another mixture at every step, some domains at 0 now and then."""
    rng = np.random.default_rng([step, num_domains])
    weight = rng.dirichlet(np.full(num_domains, 0.5))
    weight[rng.random(num_domains) < 0.2] = 0
    return weight / weight.sum() if weight.sum() > 0 else np.full(num_domains, 1 / num_domains)


def run(dataset, num_steps, mixture=changing_mixture, close=True):
    """The next `num_steps` batches, publishing a new mixture after each; stops the threads unless told otherwise."""
    batches = []
    for batch in dataset:
        batches.append(batch)
        if mixture is not None:
            step = batch["step"]
            dataset.publish(step + 1 + dataset.mixture_lag, mixture(step, len(dataset.names)))
        if len(batches) == num_steps:
            break
    if close:
        dataset.close()
    return batches


def ledger(batches):
    """[(step, domain, tokens as bytes), ...] in order."""
    return [
        (batch["step"], int(domain), row.numpy().tobytes())
        for batch in batches
        for domain, row in zip(batch["domain"], batch["tokens"], strict=True)
    ]


def share_of(order, lane):
    """Samples of a lane's share: the lanes divide the domain evenly, and each has one at least."""
    edges = [each * order.num_samples // order.num_lanes for each in (lane, lane + 1)]
    return max(edges[1] - edges[0], 1)


@contextmanager
def passing(loader):
    """A pass whose worker is ended with it: ended by the collector of garbage, torch waits 5 s for it."""
    iterator = iter(loader)
    try:
        yield iterator
    finally:
        iterator._shutdown_workers()

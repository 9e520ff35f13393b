"""Simulated run records: what a training run would have written, for any K, policy and length, without training."""

import math

import numpy as np
import pytest

from ado_stream.record import RunRecord


def write_simulated(
    run_dir, names, policy="ado", steps=300, planned=None, batch=32, seed=7, refit_every=20, broken=False
):
    """Writes RUN/record.jsonl whose losses follow known laws L = eps + beta n^-alpha exactly, but for seeded noise.

    With `broken`, a stretch of losses is null, one domain never has a law, and every second refit fails for all.
    """
    rng = np.random.default_rng(seed)
    num = len(names)
    order = np.random.default_rng(num)
    prior = order.dirichlet(np.full(num, 2.0)) * 0.9 + 0.1 / num
    eps, beta, alpha = order.uniform(1.5, 3.0, num), order.uniform(8, 25, num), order.uniform(0.2, 0.45, num)
    target = prior * order.uniform(0.4, 2.5, num)
    target /= target.sum()
    sizes = [{"tokens": int(3e6 * share), "samples": 9, "bytes": 9} for share in prior]
    record = RunRecord(run_dir)
    record.write(
        "run", version=1, run_id=f"sim-{policy}", created="2026-01-02T03:04:05Z", domains=list(names), prior=prior,
        policy=policy, policy_options={}, floor=0.005 if policy == "ado" else 0, global_batch_size=batch, seq_len=256,
        canonical_nodes=1, mixture_lag=8, steps=planned or steps, seed=seed,
        model={"preset": "nano", "parameters": 1310720}, tokenizer="bpe:4096", vocab_size=4096, world_size=1,
        device="cpu", versions={"torch": "2.9.0", "numpy": "2.1.3"},
        corpus={"path": "corpus", "fingerprint": "0123456789abcdef", "domains": dict(zip(names, sizes, strict=True))},
    )  # fmt: skip
    for step in range(steps):
        share = 0.0 if policy != "ado" else 1 - math.exp(-max(0, step - 30) / 80)
        mixture = (1 - share) * prior + share * target
        edges = np.concatenate([[0], np.floor(np.cumsum(mixture) * batch + rng.uniform())])
        samples = np.diff(edges)
        law = eps + beta * (batch * (step + 1.0)) ** -alpha
        noisy = law * np.exp(rng.normal(0, 0.02, num) / np.sqrt(np.maximum(samples, 1)))
        loss = np.where(samples > 0, noisy, np.nan)
        if broken and 100 <= step < 120:
            loss = np.full(num, np.nan)
        total = float((np.nan_to_num(loss) * samples).sum() / samples.sum()) if np.isfinite(loss).any() else math.nan
        record.write(
            "step", step=step, loss=total, domain_loss=loss, domain_tokens=samples * 256, samples=samples,
            mixture=mixture, lr=1e-3, grad_norm=1.0, tokens_per_s=20000 + 500 * rng.normal(),
            time_s={"data": 0.002, "forward_backward": 0.31, "optimizer": 0.02, "policy": 0.0003,
                    "checkpoint": 0.004, "total": 0.34},
        )  # fmt: skip
        if policy == "ado" and step >= 40 and step % refit_every == 0:
            valid = np.ones(num, dtype=bool)
            log_eps = np.log(eps)
            if broken:
                valid[0], log_eps[0] = False, np.nan
            failed = broken and step // refit_every % 2 == 1
            health = {
                "policy": policy, "step": step + 1, "ignored_losses": dict.fromkeys(names, 0), "refits": 1,
                "failed_refits": int(failed), "held_laws": dict.fromkeys(names, int(failed)),
                "at_bound": {names[-1]: ["alpha"]},
                "forecast_error": dict.fromkeys(names, {"mean": -0.0123, "mean_abs": None if failed else 0.0456}),
            }  # fmt: skip
            record.write("health", step=step, health=health)
            if not failed:
                record.write(
                    "fit", step=step, n=batch * (step + 1), log_beta=np.log(beta), log_eps=log_eps, alpha=alpha,
                    objective=np.full(num, 0.01), valid=valid, at_bound=np.zeros((num, 3), dtype=bool),
                    residual_scale=np.full(num, 0.003), num_points=np.full(num, step + 1),
                )  # fmt: skip
        if step == steps - 1 or step % 100 == 99:
            tokens = np.round(2e5 * prior)
            domain_loss = law * (1.02 - (0.03 if policy == "ado" else 0.0) * np.sign(target - prior))
            record.write(
                "eval", step=step + 1, split="val", loss=float((domain_loss * tokens).sum() / tokens.sum()),
                domain_loss=domain_loss, domain_tokens=tokens, domain_bytes=None,
            )  # fmt: skip
    record.write("event", step=steps, name="done", detail={})
    record.close()
    return run_dir


@pytest.fixture
def simulate():
    """write_simulated(run_dir, names, ...): see there."""
    return write_simulated

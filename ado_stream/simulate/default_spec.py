"""The spec of `ado-stream simulate` when none is given: 22 domains with the names and weights of The Pile's.

Prior weights are The Pile's own (arXiv 2101.00027, table 1). The laws are invented: plausible in size (nats per token,
n in samples of a thousand tokens), chosen to differ in what is learnable and how fast; they predict nothing about the
real data. Prose helps prose a little, one law breaks, and a learning-rate bump passes.
"""

from ado_stream.value_types import JsonObject

# name: prior in percent, eps, gap in nats after a million samples, alpha
_PILE_LIKE = {
    "Pile-CC": (18.11, 2.35, 0.75, 0.24),
    "PubMed Central": (14.40, 1.75, 0.55, 0.28),
    "Books3": (12.07, 2.55, 0.70, 0.20),
    "OpenWebText2": (10.01, 2.30, 0.75, 0.25),
    "ArXiv": (8.96, 1.40, 0.60, 0.30),
    "Github": (7.59, 0.75, 0.65, 0.36),
    "FreeLaw": (6.12, 1.75, 0.60, 0.27),
    "StackExchange": (5.13, 1.60, 0.65, 0.29),
    "USPTO Backgrounds": (3.65, 1.80, 0.50, 0.28),
    "PubMed Abstracts": (3.07, 2.00, 0.65, 0.27),
    "Gutenberg (PG-19)": (2.17, 2.45, 0.85, 0.19),
    "OpenSubtitles": (1.55, 2.55, 0.45, 0.17),
    "Wikipedia (en)": (1.53, 1.85, 0.90, 0.27),
    "DM Mathematics": (1.24, 1.30, 0.20, 0.45),
    "Ubuntu IRC": (0.88, 1.90, 0.80, 0.23),
    "BookCorpus2": (0.75, 2.60, 0.75, 0.19),
    "EuroParl": (0.73, 1.30, 1.30, 0.33),
    "HackerNews": (0.62, 2.55, 0.75, 0.21),
    "YoutubeSubtitles": (0.60, 1.90, 1.05, 0.25),
    "PhilPapers": (0.38, 2.15, 1.00, 0.23),
    "NIH ExPorter": (0.30, 2.05, 0.75, 0.26),
    "Enron Emails": (0.14, 1.95, 0.95, 0.23),
}


def default_spec(steps: int = 60_000) -> JsonObject:
    """A spec as `read_spec` takes it: natural against ADO, for 60,000 steps of 256 samples."""
    domains: dict[str, dict[str, float]] = {
        name: {"prior": prior, "eps": eps, "beta": gap * 1e6**alpha, "alpha": alpha}
        for name, (prior, eps, gap, alpha) in _PILE_LIKE.items()
    }
    domains["DM Mathematics"] |= {"break_samples": 2e5, "break_alpha": 0.15}
    return {
        "steps": steps,
        "global_batch_size": 256,
        "seed": 17,
        "noise": 0.35,
        "transfer": 0.05,
        "bumps": [{"step": steps // 3, "height": 0.15, "decay_steps": max(steps // 100, 1)}],
        "domains": domains,
        "policies": {"natural": {}, "ado": {}},
    }

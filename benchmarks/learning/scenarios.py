"""The scenarios and the sizes, as data: fixed before any seed was run.

Every scenario is a corpus of wanted domains, at their natural shares among each other, and at most one domain that is
made (corpora.py) and takes a share of all that is drawn. Losses are measured on the wanted domains alone: a user who
has such text in her corpus does not want the model to be good at it.
"""

from dataclasses import dataclass, field

from benchmarks.common import size

UNLEARNABLE, DUPLICATES, EXHAUSTED = "Unlearnable", "NearDuplicates", "Exhausted"
BASELINE = "natural"
STATIC = (BASELINE, "temperature:tau=1.5", "temperature:tau=2", "uniform")  # the frontier that adaptive ones must beat
ADO = ("ado", "ado:credit_power=0", "ado:shared_count=false")
OTHERS = ("odm", "episelect", "episelect:transfer=full", "gap", "velocitune", "aioli")
TARGET = ("target", "target:weights=uniform", "target:laws=validation")
SENSITIVITY = (  # each constant of `target` alone, lower and higher
    "target:dead_zone=1.5", "target:dead_zone=3", "target:confidence=0.5", "target:confidence=2",
    "target:strength=2", "target:strength=8", "target:damping=0.25", "target:damping=1",
    "target:start_step=130", "target:start_step=300", "target:max_epochs=2",
)  # fmt: skip
SIX = (BASELINE, "uniform", "ado", "ado:shared_count=false", "target")
CONTROL = "natural@other-draws"  # the baseline with other samples: what chance does to a branch


ORDER = (BASELINE, CONTROL, *STATIC[1:], *ADO, *OTHERS, *TARGET, "wanted", "target:wanted")  # of rows in tables


@dataclass(frozen=True)
class Scenario:
    """One question.

    made: the domain that is made, and its share of the samples. without: how many of the smallest wanted domains are
    kept out of training, and are what is measured. only: how many of the wanted domains, every third by size, the user
    wants; None: all. policies: in the order they are run; the oracle, natural without the made domain, is added where
    there is one.
    """

    name: str
    question: str
    made: str | None = None
    share: float = 0.0
    without: int = 0
    only: int | None = None
    policies: tuple[str, ...] = field(default=SIX)


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("clean", "all text is wanted and can be learnt", policies=(*STATIC, CONTROL, *ADO, *OTHERS, *TARGET)),
        Scenario("unlearnable-10", "a tenth is hashes, base64 and random numbers", UNLEARNABLE, 0.1),
        Scenario("unlearnable-20", "a fifth is hashes, base64 and random numbers", UNLEARNABLE, 0.2),
        Scenario("unlearnable-40", "two fifths are hashes, base64 and random numbers", UNLEARNABLE, 0.4),
        Scenario("duplicates-20", "a fifth is near-duplicates of a few documents", DUPLICATES, 0.2),
        Scenario("exhausted-20", "a fifth is a domain that is read through after a tenth of the run", EXHAUSTED, 0.2),
        Scenario(
            "three-wanted",
            "three of the domains are wanted",
            only=3,
            policies=(BASELINE, "uniform", "ado", "target", "wanted", "target:wanted"),
        ),
        Scenario("held-out", "two domains are measured that no policy trains on", without=2),
    )
}


@dataclass(frozen=True)
class Sizes:
    """Of the model and of a run."""

    num_layers: int = 2
    width: int = 64
    num_heads: int = 2
    batch_size: int = 32
    steps: int = 1200
    seq_len: int = 64
    tokenizer: str = "bpe:2048"
    micro_batch_size: int | None = None
    val_rows: int = 200  # of a forward pass
    device: str = "cpu"

    @property
    def shared_steps(self) -> int:
        """Steps before the policies part."""
        return self.steps // 10


SIZES = {
    "small": size(Sizes(), Sizes(1, 16, 2, batch_size=8, steps=30, seq_len=16, tokenizer="bpe:300")),
    "medium": Sizes(4, 128, 4, seq_len=128),  # five times the parameters, twice the tokens
    # 2.5 B tokens in steps of 262,144, on one card
    "124m": Sizes(12, 768, 12, 256, 9537, 1024, "bpe:32768", micro_batch_size=32, val_rows=32, device="cuda"),
}

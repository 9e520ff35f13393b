"""The demo's result: losses on the wanted domains, and the conclusion in two sentences."""

from collections.abc import Mapping

from ado_stream.demo.environment_files import UNLEARNABLE
from ado_stream.report.comparison import NATS, OVERALL, final_losses
from ado_stream.report.run_data import Run


def wanted_loss(run: Run) -> float:
    """Final validation loss by corpus size, nats per token; the unlearnable domain has no validation text."""
    return final_losses(run)[OVERALL[0]]


def conclusion(runs: Mapping[str, Run], loss: Mapping[str, float], clean: Mapping[str, float]) -> str:
    """Whether target helped where part of the text cannot be learnt, and its cost where all can.

    runs, loss: by the demo's run. clean: losses without the unlearnable domain, by policy.
    """
    share = _share(runs["natural"])
    gain, harm = loss["natural"] - loss["target"], clean["target"] - clean["natural"]
    if gain < NATS.level:
        return (
            f"On this text, {share:.0%} of it hashes, target did not beat natural; try a longer run: "
            "`ado-stream demo --steps 1500`."
        )
    cut = f"The losses showed that nothing is learnt from the hashes ({share:.0%} of the text); target gave them "
    cut += f"{_share(runs['target']):.0%} of the run and ended {gain:.2f} nats lower on the rest."
    without = "it changed nothing: domains that learn equally fast keep their shares."
    if abs(harm) >= NATS.level:
        without = (
            f"it {'cost' if harm > 0 else 'ended lower by'} {abs(harm):.3f} nats: in so short a run a domain that can "
            "be learnt may look as if it could not."
        )
    return f"{cut}\nWithout the hashes {without}"


def _share(run: Run) -> float:
    """The unlearnable domain's share of all samples drawn."""
    samples_K = run.samples_SK.sum(axis=0)
    return float(samples_K[run.domains.index(UNLEARNABLE)] / samples_K.sum())

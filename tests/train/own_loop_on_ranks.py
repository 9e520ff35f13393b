"""The README's training loop with the model wrapped, run on each rank; rank 0 saves the trained parameters."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from ado_model import PRESETS, Transformer
from tests.rounding import rounding
from tests.train.tiny_model import perturbed_weights

README = Path(__file__).parents[2] / "README.md"
WRAPPERS = {
    "plain": lambda model: model,
    "ddp": DistributedDataParallel,
    "fsdp": fully_shard,
    "compile": lambda model: torch.compile(model, fullgraph=True),
    "compile without inductor": lambda model: torch.compile(model, fullgraph=True, backend="aot_eager"),
}


def readme_loop() -> str:
    """The README's Python, with `model` wrapped before the optimizer is made."""
    (code,) = README.read_text().split("```python\n")[1:]
    lines = code.split("```")[0].splitlines()
    optimizer = next(number for number, line in enumerate(lines) if line.startswith("optimizer ="))
    return "\n".join([*lines[:optimizer], "model = wrap(model)", "record(policy)", *lines[optimizer:]])


def main(wrapper: str, call: str, corpus: str, out: str) -> None:
    """Trains in one process or under torchrun's environment. call: what the loop calls for the loss."""
    os.chdir(Path(corpus).parent)  # the README's corpus is a folder of that name
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    torch.manual_seed(0)
    losses: list[torch.Tensor] = []

    def record(policy) -> None:
        update = policy.update
        policy.update = lambda loss_K, count_K: losses.append(torch.tensor(loss_K)) or update(loss_K, count_K)

    names = {"wrap": WRAPPERS[wrapper], "record": record}
    code = readme_loop()
    assert code.count("= model(tokens") == 1
    exec(compile(code.replace("= model(tokens", f"= {call}(tokens"), str(README), "exec"), names)
    (model,) = (module for module in names["model"].modules() if isinstance(module, Transformer))
    found = {
        name: (value.full_tensor() if hasattr(value, "full_tensor") else value).detach()
        for name, value in model.named_parameters()
    }
    if int(os.environ.get("RANK", "0")) == 0:  # the policy is updated there alone
        found["losses of domains"] = torch.stack(losses)
        torch.save(found, out)
    if dist.is_initialized():
        dist.destroy_process_group()


def perturbed(seed: int, corpus: str, out: str) -> None:
    """The loop as it stands, from perturbed parameters (tests/rounding.py)."""
    with perturbed_weights(rounding(PRESETS["nano"].mlp_width), seed):
        main("plain", "model", corpus, out)

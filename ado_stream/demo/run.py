"""The demo, stage by stage: text, corpus, a run with ADO, the same run with the natural mixture, the report.

Each stage leaves complete files behind and finds them again, so a demo that was stopped goes on where it was.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ado_stream.demo.plan import POLICIES, DemoPlan
from ado_stream.demo.text import DomainText, read_summary, write_text
from ado_stream.prepare.config import PrepareConfig
from ado_stream.prepare.run import prepare
from ado_stream.record import FILE_NAME
from ado_stream.report.page import write_report
from ado_stream.train.config import load_config
from ado_stream.train.trainer import run_training

Tell = Callable[[str], None]


@dataclass(frozen=True)
class DemoResult:
    """Where everything lies, what the text holds, and how long each stage took."""

    report: Path
    run_dirs: list[Path]
    text: list[DomainText]
    stage_s: dict[str, float]


class Stages:
    """Announces the stages with number and elapsed time, and remembers what each took."""

    def __init__(self, tell: Tell, num_stages: int):
        self.seconds: dict[str, float] = {}
        self._tell = tell
        self._num_stages = num_stages
        self._start = time.monotonic()

    @contextmanager
    def stage(self, name: str, purpose: str) -> Iterator[None]:
        """Runs a stage; says what begins, and how long it took and the demo so far."""
        began = time.monotonic()
        self._tell(f"[{len(self.seconds) + 1}/{self._num_stages}] {purpose}")
        yield
        now = time.monotonic()
        self.seconds[name] = now - began
        self._tell(f"      {now - began:.1f} s, {now - self._start:.0f} s so far")


def run_demo(out: Path, plan: DemoPlan, tell: Tell, show_text: Callable[[list[DomainText]], None]) -> DemoResult:
    """Runs the whole demo in `out` and returns what it made. Raises AdoStreamError as the stages do."""
    plan.claim(out)
    stages = Stages(tell, 3 + len(POLICIES))
    with stages.stage("text", "collecting text from this Python environment"):
        text = read_summary(out / "text") or write_text(out / "text", plan.quick)
        show_text(text)
    with stages.stage("prepare", f"tokenising with {plan.tokenizer}, {plan.val_frac:.0%} of documents held out"):
        corpus = _prepare(out, plan, text)
    run_dirs = []
    for policy in POLICIES:
        run_dir = out / "runs" / policy
        again = " (going on with what is there)" if (run_dir / FILE_NAME).exists() else ""
        purpose = f"training the nano model for {plan.steps} steps, policy {policy}, on {device_name()}{again}"
        with stages.stage(policy, purpose):
            run_training(load_config(plan.train_settings(policy, corpus, run_dir)), resume="auto")
        run_dirs.append(run_dir)
    with stages.stage("report", "writing the report"):
        report = write_report(run_dirs, out / "report")
    return DemoResult(report, run_dirs, text, stages.seconds)


def device_name() -> str:
    """The processor or card that the runs will use."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"


def summary(result: DemoResult) -> dict[str, Any]:
    """`result` for programs, JSON-able."""
    text = [{**asdict(domain), "path": str(domain.path)} for domain in result.text]
    runs = [str(path) for path in result.run_dirs]
    return {"report": str(result.report), "runs": runs, "text": text, "stage_s": result.stage_s}


def _prepare(out: Path, plan: DemoPlan, text: list[DomainText]) -> Path:
    config = PrepareConfig(
        inputs=tuple(str(domain.path) for domain in text),
        out=str(out / "corpus"),
        seq_len=plan.seq_len,
        tokenizer=plan.tokenizer,
        domain_key="meta.pile_set_name",
        val_frac=plan.val_frac,
        seed=plan.seed,
        shard_bytes=1 << 20,
        progress=True,
    )
    return Path(prepare(config))

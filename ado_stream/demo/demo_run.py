"""The demo, stage by stage: text, corpus, a run with ADO, the same run with the natural mixture, the report.

Each stage writes complete files and reuses those of an earlier demo, so a stopped demo is resumed.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ado_stream.demo.demo_plan import POLICIES, DemoPlan
from ado_stream.demo.raw_text import DomainText, read_summary, write_text
from ado_stream.prepare.config import PrepareConfig
from ado_stream.prepare.coordinator import prepare
from ado_stream.record import FILE_NAME
from ado_stream.report.report_page import write_report
from ado_stream.train.config import load_config
from ado_stream.train.trainer import run_training

Log = Callable[[str], None]


@dataclass(frozen=True)
class DemoResult:
    """The demo's files, the sizes of its text, and how long each stage took."""

    report: Path
    run_dirs: list[Path]
    text: list[DomainText]
    stage_s: dict[str, float]


class StageLog:
    """Logs the stages with number and elapsed time; `seconds` of each."""

    def __init__(self, log: Log, num_stages: int):
        self.seconds: dict[str, float] = {}
        self._log = log
        self._num_stages = num_stages
        self._start = time.monotonic()

    @contextmanager
    def stage(self, name: str, purpose: str) -> Iterator[None]:
        """Logs the stage's purpose, then its time and that of the demo so far."""
        start = time.monotonic()
        self._log(f"[{len(self.seconds) + 1}/{self._num_stages}] {purpose}")
        yield
        now = time.monotonic()
        self.seconds[name] = now - start
        self._log(f"      {now - start:.1f} s, {now - self._start:.0f} s so far")


def run_demo(out: Path, plan: DemoPlan, log: Log, show_text: Callable[[list[DomainText]], None]) -> DemoResult:
    """Runs or resumes the demo in `out`. Raises the AdoStreamError of a stage."""
    plan.save_or_compare(out)
    stages = StageLog(log, 3 + len(POLICIES))
    with stages.stage("text", "collecting text from this Python environment"):
        text = read_summary(out / "text") or write_text(out / "text", plan.quick)
        show_text(text)
    with stages.stage("prepare", f"tokenising with {plan.tokenizer}, {plan.val_frac:.0%} of documents held out"):
        corpus = _prepare(out, plan, text)
    run_dirs = []
    for policy in POLICIES:
        run_dir = out / "runs" / policy
        again = " (resumed)" if (run_dir / FILE_NAME).exists() else ""
        purpose = f"training the nano model for {plan.steps} steps, policy {policy}, on {device_name()}{again}"
        with stages.stage(policy, purpose):
            run_training(load_config(plan.train_settings(policy, corpus, run_dir)), resume="auto")
        run_dirs.append(run_dir)
    with stages.stage("report", "writing the report"):
        report = write_report(run_dirs, out / "report")
    return DemoResult(report, run_dirs, text, stages.seconds)


def device_name() -> str:
    """The device that the runs use, for people."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"


def summary(result: DemoResult) -> dict[str, Any]:
    """`result` as JSON."""
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

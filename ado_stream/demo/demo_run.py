"""The demo, stage by stage: text, corpus, a run with ADO, the same run with the natural mixture, the report.

Each stage writes complete files and reuses those of an earlier demo, so a stopped demo is resumed.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ado_stream.corpus.corpus import load_manifest
from ado_stream.demo.demo_plan import CLEAN, POLICIES, DemoPlan
from ado_stream.demo.raw_text import DomainText, read_summary, val_path, write_text
from ado_stream.prepare.coordinator import prepare
from ado_stream.prepare.prepare_config import PrepareConfig
from ado_stream.record import FILE_NAME
from ado_stream.report.report_page import write_report
from ado_stream.train.run_config import load_config
from ado_stream.train.trainer import run_training
from ado_stream.value_types import JsonObject

Log = Callable[[str], None]


@dataclass(frozen=True)
class DemoResult:
    """The demo's files, the sizes of its text, and how long each stage took."""

    report: Path
    run_dirs: dict[str, Path]  # by POLICIES and CLEAN
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
    runs = (*POLICIES, *CLEAN)
    stages = StageLog(log, 3 + len(runs))
    with stages.stage("text", "collecting text from this Python environment"):
        text = read_summary(out / "text") or write_text(out / "text", plan.size_frac, plan.held_out_frac)
        show_text(text)
    with stages.stage(
        "prepare", f"tokenising with {plan.tokenizer}, {plan.held_out_frac:.0%} of what is wanted held out"
    ):
        corpus = _prepare(out, plan, text)
    domains = load_manifest(corpus)["domains"]
    tokens = {name: domain["splits"]["train"]["tokens"] for name, domain in domains.items()}
    run_dirs = {}
    for run in runs:
        run_dir = run_dirs[run] = out / "runs" / run.replace(" ", "-")
        again = " (resumed)" if (run_dir / FILE_NAME).exists() else ""
        purpose = f"training a small model for {plan.steps} steps, {run}, on {device_name()}{again}"
        with stages.stage(run, purpose):
            run_training(load_config(plan.train_settings(run, corpus, tokens, run_dir)), resume="auto")
    with stages.stage("report", "writing the report"):
        report = write_report([run_dirs[policy] for policy in POLICIES], out / "report")
    return DemoResult(report, run_dirs, text, stages.seconds)


def device_name() -> str:
    """The device that the runs use, for display."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"


def summary(result: DemoResult) -> JsonObject:
    """`result` as JSON."""
    text = [{**asdict(domain), "path": str(domain.path)} for domain in result.text]
    runs = {run: str(path) for run, path in result.run_dirs.items()}
    return {"report": str(result.report), "runs": runs, "text": text, "stage_s": result.stage_s}


def _prepare(out: Path, plan: DemoPlan, text: list[DomainText]) -> Path:
    config = PrepareConfig(
        inputs=tuple(str(domain.path) for domain in text),
        out=str(out / "corpus"),
        seq_len=plan.seq_len,
        tokenizer=plan.tokenizer,
        domain_key="meta.pile_set_name",
        val=tuple(str(path) for domain in text if (path := val_path(domain.path)).exists()),
        seed=plan.seed,
        shard_bytes=1 << 20,
        progress=True,
    )
    return Path(prepare(config))

"""What the verbs import: nothing heavy before their first output, and torch only where a model or a GPU is used.

Imports are counted, not seconds: torch alone takes from two to ten of them.
"""

import json
import subprocess
import sys

from ado_stream.cli import main as cli

HEAVY = ("torch", "streaming", "numba", "scipy", "matplotlib", "transformers", "pyarrow")
FIRST_OUTPUT = f"""
import io, json, os, sys
from ado_stream.cli import main as cli

class Out(io.TextIOBase):
    def write(self, text):
        os.write(3, json.dumps([text[:80], [name for name in {HEAVY} if name in sys.modules]]).encode())
        os._exit(0)

found = {{}}
for label, arguments in json.loads(sys.argv[1]).items():
    receive, send = os.pipe()
    if not os.fork():
        os.dup2(send, 3)
        sys.stdout = sys.stderr = Out()
        cli.main(arguments)
        os._exit(1)
    os.close(send)
    found[label] = json.loads(os.read(receive, 10_000) or "null")
    os.wait()
print(json.dumps(found))
"""
WITHOUT_TORCH = """
import json, sys
sys.modules["torch"] = None  # to import it is an error
from ado_stream.cli.main import main
for arguments in json.loads(sys.argv[1]):
    assert main(arguments) == 0, arguments
"""
PREPARE = ["prepare", "text", "--out", "other", "--tokenizer", "bytes", "--seq-len", "64", "--workers", "1"]
USE_TORCH = {
    "train": ["train", "config.yaml"],
    "eval": ["eval", "runs/first"],
    "export": ["export", "runs/first", "--out", "exported"],
    "preview batches": ["preview", "corpus", "--batches", "1"],
    "preview step": ["preview", "runs/first", "--step", "0"],
    "trace": ["trace", "runs/first", "--step", "0"],
    "doctor": ["doctor"],
    "demo": ["demo", "--quick"],
}
NEED_NO_TORCH = {
    "prepare": PREPARE,
    "info": ["info", "corpus", "--policy", "uniform", "--steps", "10"],
    "lint": ["lint", "corpus"],
    "preview": ["preview", "corpus"],
    "fit": ["fit", "losses.csv", "--every", "1", "--plot", "laws.png"],
    "simulate": ["simulate", "--policy", "ado", "--steps", "100"],
    "replay": ["replay", "runs/first", "--policy", "uniform"],
    "report": ["report", "runs/first"],
    "trace spikes": ["trace", "runs/first", "--spikes"],
    "control": ["control", "runs/first"],
    "completion": ["completion", "bash"],
}


def run(code, folder, arguments):
    command = [sys.executable, "-c", code, json.dumps(arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_every_verb_is_here():
    assert {arguments[0] for arguments in (*USE_TORCH.values(), *NEED_NO_TORCH.values())} == set(cli.VERBS)


def test_the_first_output_waits_for_no_heavy_import(prepared):
    """Not even for those that the verb needs later."""
    first = json.loads(run(FIRST_OUTPUT, prepared, {**USE_TORCH, **NEED_NO_TORCH}).stdout)
    assert all(first.values()), "a verb ended without a word"
    assert {label: heavy for label, (_, heavy) in first.items() if heavy} == {}
    assert first["train"][0].startswith("runs/unnamed: policy natural, 5 steps on corpus")


def test_verbs_without_a_model_run_without_torch(prepared):
    done = run(WITHOUT_TORCH, prepared, list(NEED_NO_TORCH.values()))
    assert "report: " in done.stdout
    # A pipe gets lines, not a bar: one as each stage begins (a long one: every ten seconds more)
    assert "tokenising: 0 %" in done.stderr.splitlines()
    assert "\x1b" not in done.stdout + done.stderr
    assert "\u2501" not in done.stderr, "a bar"


def test_a_long_stage_reports_to_a_log_file(capsys, monkeypatch):
    from ado_stream.prepare import progress_bar

    now = [100.0]
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: now[0])
    with progress_bar.ProgressBar(shown=True) as progress:
        progress.start("tokenising", 1000)
        for second in range(1, 31):
            now[0] = 100.0 + second
            progress.advance(20, 0)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["tokenising: 0 %", "tokenising: 20 %", "tokenising: 40 %", "tokenising: 60 %"]

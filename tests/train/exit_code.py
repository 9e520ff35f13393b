"""Runs a command as a rank and writes its exit code to FOLDER/exit.RANK; ignores the signals that reach its group.

usage: exit_code.py FOLDER COMMAND...     (by torchrun --no-python)
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # SIG_IGN would be inherited
    code = subprocess.run(sys.argv[2:], check=False).returncode
    (Path(sys.argv[1]) / f"exit.{os.environ['RANK']}").write_text(str(code))
    sys.exit(code)

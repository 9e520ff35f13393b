"""The `ado-stream` command: runs a verb, turns errors into one message and an exit code.

Only the chosen verb's module is imported, so `ado-stream --help` needs no torch. Exit 0 done, 1 failed, 2 wrong usage,
130 interrupted. A verb module offers `add_arguments(parser)`, `run(args) -> int | None` and, where options have no
effect without another or beside it, ONLY_WITH or NOT_WITH: {the other: those options}.
"""

import argparse
import importlib
import io
import logging
import os
import re
import select
import sys
import types
from collections.abc import Callable
from typing import TYPE_CHECKING

from ado_stream import __version__
from ado_stream.errors import AdoStreamError
from ado_stream.suggest import did_you_mean
from ado_stream.visible import VisibleFormatter, discard, show, visible

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

_OURS = ("ado_stream", "ado_kernels", "ado_model", "__main__")
_NO_MEMORY = re.compile("out of memory|can't allocate memory", re.IGNORECASE)
_LONGEST_LINE = 2000  # of an error: what a hostile file holds may be megabytes
VERBS = {  # what each does, and the arguments of an example
    "demo": ("build a small corpus, train with ADO and without, write a report", "--quick"),
    "prepare": (
        "raw text to shards, one data set per domain",
        "text --out corpus --tokenizer bytes --seq-len 64 --val-fraction 0.1",
    ),
    "info": ("sizes of a prepared corpus, per domain", "corpus --policy uniform --steps 1000"),
    "lint": ("check every shard of a corpus against its index", "corpus"),
    "preview": ("decoded samples, or the first batches under a mixture", "runs/first --step 3"),
    "train": ("train a model on a corpus from a config file", "config.yaml seed=1 run_dir=runs/first"),
    "control": ("pin, bound, freeze or release the mixture of a running job", "runs/first"),
    "eval": ("validation loss per domain; tasks by lm-evaluation-harness", "runs/first --max-samples 64"),
    "export": ("write a run's model as a Hugging Face checkpoint", "runs/first --out model"),
    "fit": ("fit scaling laws to recorded losses", "losses.csv --every 1 --plot laws.png"),
    "simulate": ("what a policy would do on synthetic laws", "--policy ado --steps 2000"),
    "replay": ("the mixture another policy would have chosen on a recorded run", "runs/first --policy uniform"),
    "report": ("one HTML page from one or several runs", "runs/first"),
    "trace": ("the samples of a recorded step; the steps whose loss stood out", "runs/first --step 3"),
    "doctor": ("what is installed and reachable, with advice", ""),
    "completion": ("shell completion for bash or zsh", "bash > ado-stream.bash"),
}


class _Arguments(argparse.Namespace):
    """Knows which options were given."""

    def __init__(self) -> None:
        object.__setattr__(self, "_given", set())

    def __setattr__(self, name: str, value: object) -> None:
        if hasattr(self, name) and value is not getattr(self, name):  # argparse sets the defaults first
            self._given.add(name)
        super().__setattr__(name, value)

    def has(self, option: str) -> bool:
        """Whether an option of this name was given, and not as its default."""
        return option.removeprefix("--").replace("-", "_").lower() in self._given


class _Parser(argparse.ArgumentParser):
    def _print_message(
        self, message: str, file: "SupportsWrite[str] | None" = None
    ) -> None:  # which may quote any argument
        super()._print_message(visible(message), file)


def _overview() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {purpose}" for verb, (purpose, _) in VERBS.items()]
    return "\n".join(
        [
            "usage: ado-stream VERB [options]    (ado-stream VERB --help for a verb's options)",
            "",
            "Stream pretraining data from many domains, in proportions that follow the model's learning.",
            "",
            *lines,
            "",
            "  --version  print the version;  --debug  show the traceback of a verb's error",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Runs one verb and returns the exit code; `argv` defaults to the process's own arguments."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv[1:]
    _prepare_streams()
    try:
        code = _run([argument for argument in argv if not debug or argument != "--debug"])
        sys.stdout.flush()
        return code
    except (AdoStreamError, KeyboardInterrupt, MemoryError, OSError) as error:
        if debug:
            raise
        return _explain(error, argv)
    except Exception as error:
        package = _failed_import(error)
        if debug:
            raise
        if _NO_MEMORY.search(str(error)):  # torch's errors, which are none of Python's MemoryError
            return _explain(MemoryError(str(error).partition("\n")[0]), argv)
        if package is None:
            raise
        show(
            f"{type(error).__name__}: {package} cannot be imported: {str(error).partition(chr(10))[0]}.\n"
            "  Its installation, or a setting of it in the environment, is at fault; `ado-stream doctor` says what is "
            "installed.",
            error=True,
        )
        return 1


def _failed_import(error: Exception) -> str | None:
    """The package that raised `error` while it was imported, or is not there; None for any other error."""
    traceback = error.__traceback__
    while traceback is not None:
        package = str(traceback.tb_frame.f_globals.get("__name__")).partition(".")[0]
        if traceback.tb_frame.f_code.co_name == "<module>" and package not in _OURS:
            return package
        traceback = traceback.tb_next
    missing = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
    return missing if missing and missing not in _OURS else None


def _prepare_streams() -> None:
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this process
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # names of files need not be text, nor a terminal's encoding UTF-8
            stream.reconfigure(errors="backslashreplace")
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(VisibleFormatter())


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        show(_overview())
        return 0 if argv else 2
    if argv[0] == "--version":
        show(f"ado-stream {__version__}")
        return 0
    verb, *rest = argv
    if verb not in VERBS:
        hint = did_you_mean(verb, VERBS)
        show(f"ado-stream: unknown verb {verb!r}{hint}; the verbs are: {', '.join(VERBS)}", error=True)
        return 2
    parser, module = verb_parser(verb, _Parser, prog=f"ado-stream {verb}")
    # intermixed: `train CONFIG --resume none a.b=c` has positional arguments on both sides of an option
    words = [_with_home(argument) for argument in rest]
    args = parser.parse_intermixed_args(words, _Arguments())  # exits 2 on wrong usage
    _check_effects(parser, module, args)
    return module.run(args) or 0


def _check_effects(parser: argparse.ArgumentParser, module: types.ModuleType, args: _Arguments) -> None:
    """Exits 2 for options that have no effect, by the verb's ONLY_WITH and NOT_WITH."""
    for table, word, refused in (("ONLY_WITH", "without", False), ("NOT_WITH", "with", True)):
        for other, options in getattr(module, table, {}).items():
            idle = [option for option in options if args.has(option)]
            if idle and args.has(other) is refused:
                parser.error(f"{' and '.join(idle)}: no effect {word} {other}")


def _explain(error: BaseException, argv: list[str]) -> int:
    """Shows an error in one message; the exit code."""
    if isinstance(error, KeyboardInterrupt):
        show(f"{' '.join(('ado-stream', *argv[:1]))}: interrupted; the files written so far are complete", error=True)
        return 130
    text = str(error)
    if isinstance(error, MemoryError):
        text = text or "out of memory"
    elif isinstance(error, OSError):
        try:
            sys.stdout.flush()
        except OSError:
            discard(sys.stdout)
        if isinstance(error, BrokenPipeError) and _output_was_closed():
            return 0  # `| head` has seen enough
        text = f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or error}."
    lines = [line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]} ..." for line in text.split("\n")]
    if not hasattr(error, "logged_rank"):  # otherwise it was shown when it was raised, with the rank
        show(f"{type(error).__name__}: " + "\n".join(lines), error=True)
    return 1


def verb_parser(
    verb: str, make: Callable[..., argparse.ArgumentParser], *args: object, **named: object
) -> tuple[argparse.ArgumentParser, types.ModuleType]:
    """The parser of a verb, by `make` with these arguments, a description and an example; and the verb's module."""
    module = importlib.import_module(f"ado_stream.cli.{verb}")
    description = (module.__doc__ or verb).strip().splitlines()[0]
    example = f"example: ado-stream {verb} {VERBS[verb][1]}"
    parser = make(*args, **named, description=description, epilog=example)
    module.add_arguments(parser)
    return parser, module


def _output_was_closed() -> bool:
    """Whether the reader of the pipe behind standard output has closed it."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return bool(poll.poll(0))
    except OSError:  # not a file
        return False


def _with_home(argument: str) -> str:
    """`argument` with the home folder for a ~ that the shell leaves alone, as in run_dir=~/runs and --out=~/out."""
    return re.sub(r"(^|=)(~[^/=]*)(?=/)", lambda found: found[1] + os.path.expanduser(found[2]), argument, count=1)

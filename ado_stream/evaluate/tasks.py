"""Downstream tasks of EleutherAI's lm-evaluation-harness, run on an exported model.

Task names are the harness's own; a folder of task files (YAML) can be added, so that it also runs without a network.
"""

import os
from collections.abc import Sequence

from ado_stream.errors import ConfigError, StorageError
from ado_stream.value_types import JsonObject

USUAL_TASKS = ("hellaswag", "winogrande", "piqa", "arc_easy", "logiqa2", "sciq", "lambada_openai")


def evaluate_tasks(
    model_dir: str | os.PathLike[str],
    tasks: Sequence[str],
    task_dir: str | None = None,
    device: str = "cpu",
    batch_size: int = 8,
) -> dict[str, JsonObject]:
    """{task: {metric: value}} of the exported model in `model_dir`; batch_size: sequences at once.

    Under torchrun all ranks call; rank 0 returns the result, the others an empty dict.

    Raises ConfigError when the harness is not installed or does not have a task, StorageError when a task's data cannot
    be loaded.
    """
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise ConfigError("--tasks needs lm-evaluation-harness: pip install 'ado-stream[eval]'.") from None
    manager = TaskManager(include_path=task_dir)
    unknown = [name for name in tasks if not manager.match_tasks([name])]
    if unknown:
        raise ConfigError(f"no task {unknown[0]!r}; the usual set is {', '.join(USUAL_TASKS)}.")
    try:
        output = lm_eval.simple_evaluate(
            model="hf",
            model_args=f"pretrained={os.fspath(model_dir)}",
            tasks=list(tasks),
            task_manager=manager,
            device=device,
            batch_size=batch_size,
        )
    except OSError as error:  # its libraries' errors for an unreachable hub are OSErrors
        raise StorageError(
            f"tasks {', '.join(tasks)}: {str(error).partition(chr(10))[0]}.\n"
            "  Task data come from the Hugging Face hub; without a network, give task files by --task-dir."
        ) from error
    return {} if output is None else dict(output["results"])

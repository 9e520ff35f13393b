"""Imported by the fork server of child_processes.py, so that no child has to import or initialise what stands here.

Loading one compiled function initialises Numba, half a second. It has no threads: those would not survive a fork.
"""

import boto3  # noqa: F401
import numpy as np
import safetensors.torch  # noqa: F401
import streaming  # noqa: F401
import torch._dynamo  # noqa: F401

import ado_stream.train.trainer  # noqa: F401
import tests.train.child_processes  # noqa: F401
from ado_stream.stream.numba_order import permute

permute(1, 5, np.uint64(3))

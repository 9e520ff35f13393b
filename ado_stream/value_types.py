"""Types that many rooms share: NumPy arrays by their dtype, and JSON objects."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Words = NDArray[np.uint64]
Array = NDArray[Any]  # of any dtype
TokenDtype = np.dtype[np.integer[Any]]
INTEGER_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")

JsonObject = dict[str, Any]  # of JSON values; Any, because what is read back is checked where it is used
JsonMapping = Mapping[str, Any]  # the same, not changed

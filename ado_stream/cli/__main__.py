"""`python -m ado_stream.cli` is `ado-stream`."""

import sys

from ado_stream.cli.main import main

sys.exit(main())

"""`python -m tracedb` is `tracedb`."""

from __future__ import annotations

import sys

from tracedb.cli import main

sys.exit(main())

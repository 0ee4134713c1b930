"""Found first on the server's path by Python itself: puts the failpoints in, and does nothing in any other process."""

from __future__ import annotations

import os
import sys

if "CRASH_ORDERS" in os.environ and "serve" in sys.orig_argv:
    from tests.crash.failpoints import install

    install(os.environ["CRASH_ORDERS"])

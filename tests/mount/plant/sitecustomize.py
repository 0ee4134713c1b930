"""Found first on the server's path by Python itself: lets its tasks fail, or a call hang, when told, and
does nothing elsewhere."""

from __future__ import annotations

import os
import sys

if "FAILING_TASKS" in os.environ and "serve" in sys.orig_argv:
    from tests.mount.failing import install

    install(os.environ["FAILING_TASKS"])

if "HANGING_CALL" in os.environ and "serve" in sys.orig_argv:
    from tests.mount.failing import hang

    hang(os.environ["HANGING_CALL"])

# SPDX-License-Identifier: Apache-2.0
"""What a test leaves out here, it says; see tests/needs.h. Standard library only.

    needs.py WHAT    in place of a test that could not be configured
"""

import os
import signal
import sys

SKIP = 77
HANG = 600  # seconds: no limit on time, a hundred times what the longest command here takes


# More of the same: tests/more.h.
MORE = "INST_MORE" in os.environ


def not_tested(reason):
    """Said, and left out: only this machine or its user can change it."""
    print(f"\nnot tested: {reason}", flush=True)


def missing(what):
    """The exit status of a test that lacks what ./setup --check or the tree brings."""
    if os.environ.get("CI"):
        print(f"missing: {what}", flush=True)
        return 1
    not_tested(f"{what} is missing")
    return SKIP


def heed_signals():
    """nohup and a shell's & ignore some, and what is ignored stays so in
    the commands that a test starts."""
    for number in signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


if __name__ == "__main__":
    sys.exit(missing(sys.argv[1]))

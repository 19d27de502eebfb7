"""Runs the project's own commands, one after the other."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys

from utils.errors import UserError


def command(script: str, *arguments: str) -> None:
    """Prints and runs one of the project's scripts; a failure ends the caller with the script's exit code."""
    print(f"$ python {shlex.join([script, *arguments])}", flush=True)
    with subprocess.Popen([sys.executable, script, *arguments]) as child:
        # told to stop, a script saves first: pass the word on (Ctrl-C reaches it by itself) and wait
        before = signal.signal(signal.SIGTERM, lambda number, frame: child.send_signal(number))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        code = child.wait()
    signal.signal(signal.SIGTERM, before)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if code == 2:
        raise UserError(f"stopped: {script} could not go on (its reason stands above)")
    if code:
        sys.exit(code if code > 0 else 128 - code)  # killed by a signal: as a shell says it
    print(flush=True)

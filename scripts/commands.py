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
    told: list[int] = []
    children: list[subprocess.Popen[bytes]] = []

    def stop(number: int, frame: object) -> None:
        told.append(number)
        if number == signal.SIGTERM:
            for child in children:
                child.send_signal(number)

    # told to stop, a script saves first: pass the word on (Ctrl-C reaches it by itself) and wait
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with subprocess.Popen([sys.executable, script, *arguments]) as child:
            children.append(child)
            if signal.SIGTERM in told:  # while it was started
                child.send_signal(signal.SIGTERM)
            code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if told:  # torchrun ends with a code of its own
        sys.exit(128 + told[-1])
    if code == 2:
        named = arguments[0] if script == "-m" else script
        raise UserError(f"stopped: {named} could not go on (its reason stands above)")
    if code:
        sys.exit(code if code > 0 else 128 - code)  # killed by a signal: as a shell says it
    print(flush=True)

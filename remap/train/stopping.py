"""Signals that stop a run after the step that it is in."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from jax.experimental import multihost_utils

from remap import sharding


@contextlib.contextmanager
def signals() -> Iterator[list[str]]:
    """A list into which SIGTERM and SIGINT (Ctrl-C) put their names; the old handlers come back at the end.

    The second Ctrl-C is a KeyboardInterrupt, for who cannot wait for the step to end. A signal that the caller
    ignores (as a shell does for what runs in the background) stays ignored. Only the main thread may install
    handlers. Of several processes JAX watches for SIGTERM, so that all stop at one step, and Ctrl-C counts as it.
    """
    seen: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return

    def note(number: int, _: Any) -> None:
        name = signal.Signals(number).name
        if sharding.several() and name not in seen:
            os.kill(os.getpid(), signal.SIGTERM)
        if name in seen and number == signal.SIGINT:
            raise KeyboardInterrupt
        seen.append(name)

    numbers = (signal.SIGINT,) if sharding.several() else (signal.SIGTERM, signal.SIGINT)
    previous = {number: signal.getsignal(number) for number in numbers}
    try:
        for number, handler in previous.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, note)
        yield seen
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def stopped_by(seen: list[str], step: int) -> str:
    """What stops the run after this step, "" for nothing. Several processes agree, a step or two later."""
    if not sharding.several():
        return seen[0] if seen else ""
    return "SIGTERM" if multihost_utils.reached_preemption_sync_point(step) else ""

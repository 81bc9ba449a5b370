"""Raises an exception at any line of the modules of candles, as a signal handler does."""

import sys


class Interrupt(BaseException):
    """An exception from outside, as a signal handler raises it."""


def interrupt_at(line: int, act) -> bool:
    """Run `act` and raise at the given executed line of the stream's modules; whether the line was reached."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        if "crypto_lstm/data/" not in frame.f_code.co_filename.replace("\\", "/"):
            return None
        if event == "line":
            count += 1
            if count == line:
                raise Interrupt
        return trace

    sys.settrace(trace)
    try:
        act()
    except Interrupt:
        return True
    finally:
        sys.settrace(None)
    return False

"""What programs begin with that kill themselves at every step of some work, one child after another."""

# `die_at(step, names)`: from now on, the call after the first `step` to these functions of `os` is a SIGKILL.
DYING = """
import os, signal, sys

def die_at(step, names):
    left = step
    def counted(real):
        def call(*args, **kwargs):
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        return call
    for name in names:
        setattr(os, name, counted(getattr(os, name)))
"""

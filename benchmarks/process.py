"""What one whole process cost: wall time, processor time, memory of its own. Linux."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLE = 0.002  # seconds between looks at the memory


@dataclass(frozen=True)
class Cost:
    """Of a finished process and what it waited for.

    Attributes:
        seconds: wall time, start-up included.
        processor: seconds of processor time, user and system.
        anonymous: most bytes that belonged to the process and to no file (RssAnon), sampled.
        resident: most bytes resident, mapped files included (exact; an upper bound of `anonymous`).
    """

    seconds: float
    processor: float
    anonymous: int
    resident: int


def run(command: Sequence[str], *, watch: bool = False, environment: Mapping[str, str] | None = None) -> Cost:
    """Run a command to its end; `watch` looks at its memory, which costs a few percent of one core.

    Raises:
        SystemExit: the command failed; its stderr is shown.
    """
    with tempfile.TemporaryFile() as stderr:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=stderr, env={**os.environ, **(environment or {})}
        )
        anonymous = 0
        if watch:
            while not _ended(process.pid):
                anonymous = max(anonymous, _anonymous(process.pid))
                time.sleep(SAMPLE)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            stderr.seek(0)
            said = stderr.read().decode(errors="replace")[-4000:]
            raise SystemExit(f"{' '.join(command)}\nended with {process.returncode}:\n{said}")
    return Cost(seconds, used.ru_utime + used.ru_stime, anonymous, used.ru_maxrss * 1024)


def bare() -> Cost:
    """An interpreter that does nothing."""
    return run([sys.executable, "-c", "import time; time.sleep(0.2)"], watch=True)


def start_up(times: int = 5) -> float:
    """Wall seconds of `python -c pass`, the best of several."""
    return min(run([sys.executable, "-c", "pass"]).seconds for _ in range(times))


def cofuse(*arguments: str) -> list[str]:
    """The command as it is installed beside this interpreter."""
    return [str(Path(sys.executable).parent / "cofuse"), *arguments]


def _ended(pid: int) -> bool:
    # Waited for below; until then it stays as a zombie, whose memory is gone.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def _anonymous(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0  # it has just ended

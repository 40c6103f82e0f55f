"""What /proc shows about the processes of an engine, evidence about a hang, and the end of a hanging engine.

Sources: proc_pid_stat(5), proc_pid_wchan(5), core(5) of man-pages 6.9; Python's documentation of `faulthandler`.
"""

import os
import resource
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
# devices of NVIDIA and AMD GPUs in a container
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd")


class Process:
    """One process. `state` is proc's letter: R runs, D waits for a disk, S sleeps, T is stopped by a signal."""

    def __init__(self, pid):
        self.pid = pid
        # the name is in parentheses and may contain spaces and parentheses
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        self.state, self.parent, self.major_faults = fields[0], int(fields[1]), int(fields[9])
        # user and system time, also of children that have ended: compilers
        self.cpu_seconds = sum(map(int, fields[11:15])) / TICKS
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        self.title = command[:60] or "?"

    def threads(self):
        """(name, state, folder in /proc) of each thread."""
        found = []
        try:
            folders = [Path(entry.path) for entry in os.scandir(f"/proc/{self.pid}/task")]
        except OSError:
            # the process has just ended
            return found
        for folder in folders:
            try:
                head, _, rest = (folder / "stat").read_text().rpartition(")")
                found.append((head.partition("(")[2], rest.split()[0], folder))
            except OSError:
                continue
        return found


def _read(path):
    try:
        text = path.read_text().strip()
    except OSError:
        return "?"
    return text if text not in ("", "0") else "?"


def find_tree(root):
    """The process `root` and all its descendants, without zombies."""
    every = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                every[int(entry.name)] = Process(int(entry.name))
            except (OSError, ValueError, IndexError):
                # a process that has just ended
                continue
    tree, new = [], [root]
    while new:
        tree += [every[pid] for pid in new if pid in every]
        new = [one.pid for one in every.values() if one.parent in new]
    return [one for one in tree if one.state != "Z"]


def is_gpu_busy():
    """Whether a GPU of this container computes. None: there is a GPU, but nothing shows its load. False: no GPU."""
    if not any(map(os.path.exists, GPU_DEVICES)):
        return False
    try:
        query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        shown = subprocess.run(query, capture_output=True, text=True, timeout=2, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        shown = [_read(path) for path in Path("/sys/class/drm").glob("card*/device/gpu_busy_percent")]
    if not shown or not all(map(str.isdigit, shown)):
        return None
    return any(int(one) for one in shown)


def describe(process):
    """Lines about a process and its threads; equal threads share one line."""
    yield f"process {process.pid} ({process.title}): state {process.state}, {process.cpu_seconds:.1f} s of CPU time"
    # the kernel function in which a thread waits, if the kernel tells it
    threads = Counter((name, state, _read(folder / "wchan")) for name, state, folder in process.threads())
    for (name, state, where), number in threads.most_common(12):
        yield f"  {number} x thread {name}: state {state}, waits in {where}"


def end(root, seconds=3.0):
    """Ends `root` and its descendants, also stopped ones. Python prints its stacks if PYTHONFAULTHANDLER is set.

    `root` ends last: until then, it keeps its children from being orphans, and supervise.sh from starting another one.
    """
    tree = find_tree(root)
    # `root` would log the end of its children as errors of its own
    _send(root, signal.SIGSTOP)
    children = [one.pid for one in tree if one.pid != root] or [root]
    for pid in children:
        try:
            # 1 also prevents core dumps that the kernel pipes to a program
            resource.prlimit(pid, resource.RLIMIT_CORE, (1, 1))
        except (OSError, ValueError):
            continue
        _send(pid, signal.SIGABRT)
        _send(pid, signal.SIGCONT)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(one.pid in children for one in find_tree(root)):
        time.sleep(0.1)
    # children that started meanwhile are in the second tree
    for pid in dict.fromkeys([one.pid for one in (*tree, *find_tree(root)) if one.pid != root] + [root]):
        _send(pid, signal.SIGKILL)


def _send(pid, number):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        # it has ended
        pass

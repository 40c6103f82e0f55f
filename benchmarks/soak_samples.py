"""Samples what a stack under soak.py uses: memory, threads, descriptors and disk."""

import csv
import subprocess
import threading
import time
from pathlib import Path

from growth import Series

__all__ = ["Sampler", "list_files"]

SAMPLE_SECONDS = 10
# bash without other programs: one line per process of the container, then the kilobytes of /tmp
PROCESSES = r"""shopt -s nullglob
for p in /proc/[0-9]*; do
  fds=("$p"/fd/*); parent= rss=0 threads=0
  while read -r key value _; do
    case $key in PPid:) parent=$value;; VmRSS:) rss=$value;; Threads:) threads=$value;; esac
  done <"$p"/status || continue
  echo "${p#/proc/} $parent $rss $threads ${#fds[@]}"
done 2>/dev/null
du -sk /tmp"""


def read_processes(container):
    """(KiB of memory, threads, descriptors, processes, KiB of /tmp) of a container, or None if it can't be read."""
    done = subprocess.run(["docker", "exec", container, "bash", "-c", PROCESSES], capture_output=True, text=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    if done.returncode or not lines:
        return None
    found = {int(row[0]): [int(value) for value in row[1:]] for row in lines[:-1]}
    # health checks and this program have been started by `docker exec`: their first process has the parent 0
    own = [pid for pid in found if is_below(pid, found)]
    memory, threads, descriptors = (sum(found[pid][column] for pid in own) for column in (1, 2, 3))
    return memory, threads, descriptors, len(own), int(lines[-1][0])


def is_below(pid, found):
    """Whether a process is process 1 of its container, or descends from it."""
    while pid not in (0, 1):
        pid = found[pid][0] if pid in found else 0
    return pid == 1


class Sampler:
    """Samples all quantities every 10 s, in a thread of its own."""

    def __init__(self, stack, load):
        self.stack, self.load, self.name = stack, load, stack.data["name"]
        # at least three times what was seen in 12 minutes, and less than a leak of one unit a round adds in an hour
        self.series = {}
        for service, megabytes in (("gateway", 4), ("exporter", 4)):
            for what, unit, limit in (("memory", "MiB", megabytes), ("threads", "", 2), ("descriptors", "", 5),
                                      ("processes", "", 1), ("/tmp", "KiB", 64)):  # fmt: skip
                self.series[service, what] = Series(f"{service}: {what}", unit, limit)
        self.series["gateway", "log"] = Series("gateway: log for each request", "bytes", 64, ceiling=2048)
        self.series["exporter", "log"] = Series("exporter: log for each minute", "KiB", 1, ceiling=64)
        self.series["folder", "size"] = Series("stack's folder: size", "KiB", 16)
        self.series["folder", "files"] = Series("stack's folder: files", "", 1)
        self.series["volume", "size"] = Series("Prometheus' volume: size", "MiB", 32)
        self.started = time.monotonic()
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        self.thread.join()

    def run(self):
        while not self.stopped.wait(SAMPLE_SECONDS - (time.monotonic() - self.started) % SAMPLE_SECONDS):
            at = time.monotonic() - self.started
            try:
                values = self.measure(at)
            except (OSError, ValueError, IndexError, subprocess.SubprocessError):
                values = dict.fromkeys(self.series)
            for place, value in values.items():
                self.series[place].add(at, value)

    def measure(self, at):
        values = dict.fromkeys(self.series)
        for service in ("gateway", "exporter"):
            if found := read_processes(f"{self.name}-{service}-1"):
                memory, threads, descriptors, processes, tmp = found
                values[service, "memory"] = memory / 1024
                values |= {(service, "threads"): threads, (service, "descriptors"): descriptors,
                           (service, "processes"): processes, (service, "/tmp"): tmp}  # fmt: skip
        if (size := self.log_size("gateway")) is not None and self.load.requests:
            values["gateway", "log"] = size / self.load.requests
        if (size := self.log_size("exporter")) is not None:
            values["exporter", "log"] = size / 1024 / (at / 60)
        files = list_files(self.stack.folder)
        values["folder", "files"] = len(files)
        values["folder", "size"] = sum(files.values()) / 1024
        du = self.stack.execute("prometheus", "du", "-sk", "/prometheus")
        if not du.returncode:
            values["volume", "size"] = int(du.stdout.split()[0]) / 1024
        return values

    def log_size(self, service):
        """Bytes of a container's log and of its rotated files, or None: only root on the engine's machine may look."""
        done = subprocess.run(["docker", "inspect", "--format", "{{.LogPath}}", f"{self.name}-{service}-1"],
                              capture_output=True, text=True)  # fmt: skip
        path = Path(done.stdout.strip() or "/nonexistent")
        try:
            return sum(one.stat().st_size for one in path.parent.iterdir() if one.name.startswith(path.name)) or None
        except OSError:
            return None

    def write(self, path):
        with path.open("w", newline="") as file:
            rows = csv.writer(file)
            for one in self.series.values():
                rows.writerows(
                    (one.name, one.unit, f"{at:.1f}", value) for at, value in zip(one.times, one.values, strict=True)
                )


def list_files(folder):
    """Sizes of all files by path. A command may remove one meanwhile."""
    sizes = {}
    for path in folder.rglob("*"):
        try:
            if path.is_file():
                sizes[str(path.relative_to(folder))] = path.stat().st_size
        except FileNotFoundError:
            continue
    return sizes

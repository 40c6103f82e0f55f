#!/usr/bin/env python3
"""Watches an engine for hangs. supervise.sh starts it next to the engine: watch.py ENGINE BASE_URL SECONDS PID.

An engine hangs if all of these are true:
- No counter of the engine has moved for SECONDS.
- A request for one token, sent after 0.6 x SECONDS, got no answer within 0.32 x SECONDS.
- The processes below PID are stopped or asleep. If they compute (CPU, GPU, disk) without progress, the watch waits
  PATIENCE x SECONDS, because a long prompt or a compiler is no hang.

The watch then writes the evidence to the container's log and to a file, and kills the processes. The gateway retries
their requests, and supervise.sh restarts the engine. The watch begins after the first health check that passes.
docs/decisions/hangs.md gives the reasons.
"""

import importlib
import os
import sys
import threading
import time
import urllib.error
from pathlib import Path

import watch_metrics
import watch_processes as processes

READY = Path(os.environ.get("STACKGEN_READY_FILE", "/tmp/stackgen.ready"))
EVIDENCE = Path(os.environ.get("STACKGEN_HANG_FILE", "/tmp/stackgen.hang"))
# an engine that computes may take this many times as long: 17 minutes by default
PATIENCE = float(os.environ.get("STACKGEN_HANG_PATIENCE") or 40)
# an engine that uses less than this share of a core does not compute: threads of an idle engine sometimes wake up
IDLE_CORES = 0.05
# above the first share, the engine computes; above the second one, its counters may have moved
COMPUTING_CORES, AWAKE_CORES = 0.2, 0.01
# share of the samples in which a thread ran or waited for a disk
IDLE_SAMPLES = 0.25
# page faults per second that wait for a disk: an engine that is being swapped in
IDLE_FAULTS = 1.0


def say(text):
    print(f"stackgen: {text}", file=sys.stderr, flush=True)


class Probe:
    """A request for one token, in a thread. `answered` is None while it waits; any answer counts, also an error."""

    def __init__(self, engine, seconds):
        self.began, self.answered = time.monotonic(), None
        threading.Thread(target=self._run, args=(engine, seconds), daemon=True).start()

    def _run(self, engine, seconds):
        try:
            engine.generate(seconds)
            self.answered = True
        except urllib.error.HTTPError:
            self.answered = True
        except (TimeoutError, urllib.error.URLError) as error:
            # a refused connection is no hang: the server is starting or has ended
            timed_out = isinstance(getattr(error, "reason", error), TimeoutError)
            self.answered = not timed_out
        except (OSError, ValueError, LookupError):
            self.answered = True


class Activity:
    """What the engine's processes have done in the last `seconds`."""

    def __init__(self, seconds):
        self.seconds, self.samples = seconds, []

    def add(self, now, tree, counted):
        """Adds a sample: `tree` is all processes, `counted` are those that compute. Returns the cores in use."""
        sample = {
            "time": now,
            "processes": {one.pid: one for one in tree},
            "counted": {one.pid for one in counted},
            "runs": any(state in ("R", "D") for one in counted for _, state, _ in one.threads()),
            "stopped": [one for one in tree if one.state == "T"],
        }
        before = self.samples[-1:] or [sample]
        self.samples = [one for one in self.samples if one["time"] >= now - self.seconds] + [sample]
        return self._rate("cpu_seconds", before[0])

    def _rate(self, name, first):
        """How much an attribute of the counted processes has risen per second since the sample `first`."""
        last = self.samples[-1]
        now = {pid: getattr(last["processes"][pid], name) for pid in last["counted"]}
        before = {pid: getattr(one, name) for pid, one in first["processes"].items()}
        risen = sum(max(0, value - before.get(pid, 0)) for pid, value in now.items())
        return risen / max(last["time"] - first["time"], 0.001)

    def stopped(self, seconds):
        """The processes, if any, that a signal has stopped for at least `seconds`."""
        running = [one["time"] for one in self.samples if not one["stopped"]] or [self.samples[0]["time"]]
        last = self.samples[-1]
        return last["stopped"] if last["time"] - running[-1] >= seconds else []

    def is_asleep(self):
        """Whether nothing computed. A GPU whose load is unknown (None) counts as busy."""
        first, last = self.samples[0], self.samples[-1]
        is_long = last["time"] - first["time"] >= 0.8 * self.seconds
        is_gpu_idle = all(one.get("gpu", False) is False for one in self.samples)
        runs = sum(one["runs"] for one in self.samples) / len(self.samples)
        cores, faults = self._rate("cpu_seconds", first), self._rate("major_faults", first)
        return is_long and is_gpu_idle and cores < IDLE_CORES and faults < IDLE_FAULTS and runs < IDLE_SAMPLES


class Watch:
    """The decision. `tick` takes one sample; if the engine hangs, it returns the kind and the text of the reason."""

    def __init__(self, engine, seconds, root):
        self.engine, self.seconds, self.root = engine, seconds, root
        self.activity = Activity(seconds)
        self.counters, self.probe = None, None
        # the time of the last progress or computation, and the time when a counter last moved
        self.since = self.moved_at = time.monotonic()
        self.last_tick = self.last_poll = self.last_awake = self.ready_at = 0.0
        # whether the engine's processes have run since the counters were read
        self.is_silent, self.has_run = False, True

    @property
    def is_out_of_patience(self):
        return self.engine.has_counters and time.monotonic() - self.moved_at >= PATIENCE * self.seconds

    def _counted(self, tree):
        # a web server in front of the engine's processes is busy as long as clients retry
        below = [one for one in tree if one.pid != self.root and "APIServer" not in one.title]
        return tree if self.is_silent else below or tree

    def _poll(self, now):
        """Reads the counters; whether they have moved. The server logs each request, so this is done only if needed."""
        counters = self.engine.read_counters(self.seconds / 5)
        self.last_poll, self.is_silent = now, counters is None
        has_moved = counters is not None and counters != self.counters
        self.counters = counters if counters is not None else self.counters
        return has_moved

    def _has_answered(self):
        """Whether the engine answered a request for one token: the watch's, or the health check's."""
        try:
            ready_at = READY.stat().st_mtime
        except OSError:
            ready_at = self.ready_at
        is_new, self.ready_at = ready_at != self.ready_at, ready_at
        return is_new or (self.probe is not None and self.probe.answered)

    def tick(self):
        now, tree = time.monotonic(), processes.find_tree(self.root)
        passed, self.last_tick = now - self.last_tick, now
        cores = self.activity.add(now, tree, self._counted(tree))
        # after a pause of the container, earlier samples are not valid
        if passed > self.seconds / 2 or self._has_answered():
            self.since = self.moved_at = now
            self.probe = None
            return None
        if cores > AWAKE_CORES:
            self.last_awake, self.has_run = now, True
        # ranks that wait for a stopped rank compute, too: this is no progress
        stopped = self.activity.samples[-1]["stopped"]
        if cores > COMPUTING_CORES and not stopped and not self.is_out_of_patience:
            self.since, self.probe = now, None
        # an engine that computes now can't be asleep, so its counters are read less often
        pause = self.seconds / 10 if cores < COMPUTING_CORES else self.seconds
        is_due = self.has_run and now - self.last_poll >= pause
        if now - self.since >= 0.6 * self.seconds or is_due:
            self.has_run = False
            if self._poll(now) or self.engine.is_paused:
                # counters move only while the processes run
                self.moved_at = max(self.moved_at, now if self.engine.is_paused else self.last_awake)
                self.since, self.probe = max(self.since, self.moved_at), None
                return None
        return self._judge(now)

    def _judge(self, now):
        quiet, wait = now - self.since, 0.32 * self.seconds
        if self.probe is None or (self.probe.answered is False and now - self.probe.began > 2 * wait):
            if quiet >= 0.6 * self.seconds:
                self.probe = Probe(self.engine, wait)
            return None
        self.activity.samples[-1]["gpu"] = processes.is_gpu_busy()
        if self.probe.answered is not False or quiet < self.seconds:
            return None
        if stopped := self.activity.stopped(wait):
            return "stopped", f"process {stopped[0].pid} ({stopped[0].title}) is stopped"
        if self.activity.is_asleep() and quiet >= self.engine.slack * self.seconds:
            return "asleep", "its processes are asleep"
        return ("computing", "its processes compute without a result") if self.is_out_of_patience else None


def report(watch, kind, reason):
    """Writes the evidence to the log and to a file, and kills the engine."""
    quiet = time.monotonic() - (watch.moved_at if kind == "computing" else watch.since)
    lines = [f"the service hangs: no progress for {quiet:.0f}s, {watch.engine.describe()}, no answer to a request for "
             f"one token, {reason}"]  # fmt: skip
    for process in processes.find_tree(watch.root):
        lines += [f"hang: {line}" for line in processes.describe(process)]
    lines += [f"hang: {line}" for line in watch.engine.evidence()]
    lines.append("hang: ending its processes; Python prints their stacks")
    for line in lines:
        say(line)
    try:
        # from this file, supervise.sh knows why the service ended
        EVIDENCE.write_text("\n".join(lines) + "\n")
        watch_metrics.count(kind)
    finally:
        processes.end(watch.root)


def main():
    name, base, seconds, root = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
    engine = importlib.import_module(f"{name}_progress").Engine(base)
    watch = Watch(engine, seconds, root)
    if port := os.environ.get("STACKGEN_WATCH_PORT"):
        try:
            watch_metrics.serve(watch, int(port))
        except (OSError, ValueError) as error:
            say(f"the watch for hangs has no metrics: {error}")
    # supervise.sh waits for the watch of a service that has ended, and its signal may come too early to be noticed
    service = Path(f"/proc/{root}")
    while not READY.exists() and service.exists():
        time.sleep(min(seconds / 12, 1))
    told = ""
    while service.exists():
        try:
            reason = watch.tick()
        # the engine is exiting, or the machine has no memory: the state is unknown, and the watch continues
        except Exception as error:
            text = f"the watch for hangs: {type(error).__name__}: {error}"
            if text != told:
                say(text)
            told, reason = text, None
        if reason:
            report(watch, *reason)
            return
        time.sleep(seconds / 12)


if __name__ == "__main__":
    main()

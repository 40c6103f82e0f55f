"""The progress of a FastChat worker, for watch.py: a request for one token.

A worker of FastChat 0.2.36 serves no counters. So its progress is the answer to this request, and the CPU time of its
process. Its web server and its model share one process (fastchat/serve/model_worker.py).
"""

import json
import urllib.error
import urllib.request

# requests to loopback must not go through a proxy that the user set for downloads
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Engine:
    """A worker at `base`."""

    is_paused = has_counters = False

    def __init__(self, base):
        self.base, self.status, self.slack = base, {}, 1

    def _call(self, path, body, seconds):
        request = urllib.request.Request(
            self.base + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with OPENER.open(request, timeout=seconds) as response:
            return response.read()

    def read_counters(self, seconds):
        """Always equal; None if the worker's web server doesn't answer."""
        try:
            self.status = json.loads(self._call("/worker_get_status", {}, seconds))
        except urllib.error.HTTPError:
            # launch.py refuses the request while the worker stops
            return ()
        except (OSError, ValueError):
            self.slack = 1
            return None
        # clients that read slowly can occupy all slots of the worker, which then computes nothing
        self.slack = 4
        return ()

    def generate(self, seconds):
        """Requests one token."""
        body = {"prompt": "1", "max_new_tokens": 1, "temperature": 0, "echo": False}
        self._call("/worker_generate", body, seconds)

    def describe(self):
        """How many requests the worker had when it last answered."""
        return f"{self.status.get('queue_length', 'an unknown number of')} requests running or waiting"

    def evidence(self):
        """The last status."""
        yield f"status: {json.dumps(self.status)}"

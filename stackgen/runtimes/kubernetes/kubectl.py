"""Runs kubectl: one context of the user's kubeconfig, one namespace, and clear errors.

kubectl and not a client library: kustomize, contexts, and the login programs of clouds are parts of it, and users have
it anyway. Its messages are those of kubectl 1.20 to 1.32 (`k8s.io/kubectl`, `pkg/cmd/util/helpers.go`).
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stackgen.errors import MachineError, StartError

__all__ = ["Kubectl", "connect", "explain"]

# seconds for one request; applying a stack of hundreds of models takes longer
# kubectl 1.32: `conflict with "NAME": .data`, `conflicts with "NAME" using v1:`
CONFLICT = re.compile(r'conflicts? with "([^"]+)"')
READ_LIMIT, CHANGE_LIMIT = 60.0, 600.0
LOG_LINE = re.compile(r"[EWI]\d{4} \d\d:\d\d:\d\d")
UNREACHABLE = (
    "Unable to connect to the server",
    "The connection to the server",
    "Unauthorized",
    "You must be logged in",
    "net/http: TLS handshake timeout",
    "context deadline exceeded",
)


@dataclass(frozen=True, slots=True)
class Kubectl:
    """kubectl with a context and a namespace. `server` is the address of the API server, for the user."""

    context: str
    server: str
    namespace: str

    def run(self, *words: str, limit: float = READ_LIMIT, stdin: str | None = None) -> str:
        """Returns what `kubectl WORDS` prints. `limit` is in seconds, `stdin` is its input.

        Raises MachineError if the cluster can't be reached or refuses this user, and StartError for any other failure;
        its `output` is what kubectl printed.
        """
        return _run(self.words(*words), limit, stdin)

    def apply(self, *words: str, limit: float = READ_LIMIT, stdin: str | None = None) -> str:
        """Applies objects on the server as the field manager `stackgen`; `words` say which. Raises as `run` does.

        Fields that the user has applied with `kubectl apply --server-side` are taken over: kubectl's own name is
        `kubectl`. Fields of all other managers are a conflict.
        """
        command = ("apply", "--server-side", "--field-manager", "stackgen", *words)
        try:
            return self.run(*command, limit=limit, stdin=stdin)
        except StartError as error:
            if set(CONFLICT.findall(error.output)) != {"kubectl"}:
                raise
        return self.run(*command, "--force-conflicts", limit=limit, stdin=stdin)

    def words(self, *words: str) -> tuple[str, ...]:
        """Returns the arguments of kubectl for this context and namespace."""
        return ("--context", self.context, "--namespace", self.namespace, *words)

    def read(self, kinds: str, *words: str) -> list[dict[str, Any]]:
        """Returns the objects of `kinds`, such as `pods,jobs`."""
        found: list[dict[str, Any]] = json.loads(self.run("get", kinds, *words, "--output", "json"))["items"]
        return found

    def kinds(self) -> tuple[str, ...]:
        """The kinds in namespaces that this cluster can list and delete, such as `deployments.apps`."""
        words = ("api-resources", "--namespaced", "--verbs", "list,delete", "--output", "name")
        return tuple(self.run(*words).split())


def connect(context: str | None, namespace: str) -> Kubectl:
    """Returns kubectl for `context`, or for the current context. Raises MachineError if there is none."""
    chosen = ("--context", context) if context else ()
    try:
        text = _run(("config", "view", "--minify", "--output", "json", *chosen), READ_LIMIT)
    except StartError as error:
        what = f"kubectl has no context {context}" if context else "kubectl has no current context"
        raise MachineError(
            f"{what}: {error.output.strip()}",
            "list the contexts with `kubectl config get-contexts`, and choose one with --context or `kubectl config "
            "use-context`",
        ) from None
    view = json.loads(text)
    contexts, clusters = view.get("contexts") or [], view.get("clusters") or []
    if not contexts or not clusters:
        raise MachineError("kubectl has no current context", "choose a context: `kubectl config use-context NAME`")
    return Kubectl(contexts[0]["name"], clusters[0]["cluster"].get("server", "?"), namespace)


def explain(word: str, text: str) -> MachineError | StartError:
    """Returns the error of `kubectl WORD`, which printed `text`. Its `output` is what kubectl printed."""
    # kubectl logs each attempt to reach the server before its own message
    lines = (line for line in text.strip().splitlines() if not LOG_LINE.match(line))
    text = "\n".join(dict.fromkeys(lines))
    if any(one in text for one in UNREACHABLE):
        return MachineError(f"the cluster does not answer: {text}", "check that `kubectl get nodes` works")
    if "Error from server (Forbidden)" in text or re.search(r"(?m)^error: .* is forbidden: User ", text):
        return MachineError(
            f"the cluster refuses this user: {text}",
            "ask the cluster's administrator for the role `edit` in the namespace",
        )
    error = StartError(f"`kubectl {word}` failed: {text}")
    error.output = text
    return error


def _run(words: Sequence[str], limit: float, stdin: str | None = None) -> str:
    try:
        # without input, kubectl must not read from the terminal
        done = subprocess.run(
            ["kubectl", *words], capture_output=True, text=True, timeout=limit, input=stdin or "", check=False
        )
    except FileNotFoundError:
        raise MachineError(
            "kubectl is not installed", "install kubectl 1.25 or newer: kubernetes.io/docs/tasks/tools"
        ) from None
    except subprocess.TimeoutExpired:
        raise MachineError(
            f"kubectl did not end within {limit:.0f} seconds", "check that the cluster answers: `kubectl get nodes`"
        ) from None
    if done.returncode == 0:
        return done.stdout
    word = words[4] if words[:1] == ("--context",) else words[0]
    raise explain(word, done.stderr.strip() or done.stdout)

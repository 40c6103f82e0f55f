"""The workload of a service: a Deployment, a LeaderWorkerSet or a Job, with its Services, budgets and autoscaler."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from stackgen.kubernetes.model import Autoscaler, Pairs, ResourceClaim, Workload
from stackgen.kubernetes.model import Service as Exposed
from stackgen.kubernetes.names import HTTP, labels, leader_selector, object_name, selector
from stackgen.kubernetes.pods import PodBuilder
from stackgen.kubernetes.probes import port_of
from stackgen.plan import Plan, Service
from stackgen.render.templating import RenderedFile

__all__ = ["WorkloadBuilder"]

# seconds for the pull of an image, and for a download, before the time that the service itself may need
PULL_SECONDS, DOWNLOAD_SECONDS = 900, 7200
# api groups of the workloads
APPS, LWS = "apps/v1", "leaderworkerset.x-k8s.io/v1"


@dataclass(frozen=True, slots=True)
class WorkloadBuilder:
    """Builds the workloads of one plan. `port` is the one at which the gateway is published."""

    plan: Plan
    pods: PodBuilder
    port: int

    def build(self, service: Service, scripts: Sequence[RenderedFile] = ()) -> Workload:
        """The workload of `service`. `scripts` are the files that a Job's name must depend on."""
        if service.role == "download":
            return self._job(service, scripts)
        kind = "LeaderWorkerSet" if service.group else "Deployment"
        start = service.health.start_period if service.health else 0
        replicas, scaled = self.pods.replicas(service), self._autoscaler(service)
        surge, unavailable = self._limits(service)
        return Workload(
            kind=kind,
            name=object_name(service),
            comment=service.comment,
            labels=labels(self.plan.name, service),
            selector=selector(self.plan.name, service),
            pod=self.pods.pod(service),
            worker=self.pods.pod(service, leader=False) if service.group else None,
            nodes=service.group.size if service.group else 1,
            # an autoscaler's number must survive the next `kubectl apply`
            replicas=None if scaled else replicas,
            deadline=start + PULL_SECONDS + (DOWNLOAD_SECONDS if service.weights else 0),
            surge=surge,
            unavailable=unavailable,
            services=tuple(self._services(service)),
            # with a single replica, a budget would block the drain of its node
            disruption=self._pod_selector(service) if replicas > 1 else (),
            autoscaler=scaled,
            resource_claim=self._resource_claim(service),
        )

    def _limits(self, service: Service) -> tuple[int | None, int | None]:
        # two controllers would each know half of the workers
        if service.role == "controller":
            return None, None
        # an engine of the new version would wait for the memory or the GPU of the old one
        return (0, 1) if service.role in ("engine", "worker") else (1, 0)

    def _pod_selector(self, service: Service) -> Pairs:
        return leader_selector(service) if service.group else selector(self.plan.name, service)

    def _services(self, service: Service) -> list[Exposed]:
        own = labels(self.plan.name, service)
        if service.role == "gateway":
            ports = self.pods.pod(service).containers[0].ports
            inside = tuple((name, number, name) for name, number in ports)
            return [
                Exposed(service.name, "The URL of all models", own, self._pod_selector(service),
                        ((HTTP, self.port, HTTP),), self.pods.settings.service_type),
                # not published, whatever the type of the other one is
                Exposed(f"{service.name}-internal", "The gateway for the stack's own pods", own,
                        self._pod_selector(service), inside),
            ]  # fmt: skip
        port = port_of(service)
        if not port or service.role == "worker":
            return []
        comment = "One name for the addresses of all replicas that are ready; the gateway chooses among them"
        return [Exposed(service.name, comment if service.role == "engine" else service.comment, own,
                        self._pod_selector(service), ((HTTP, port, HTTP),), headless=True)]  # fmt: skip

    def _autoscaler(self, service: Service) -> Autoscaler | None:
        spec = self.pods.settings.autoscaling
        if spec is None or not service.max_replicas:
            return None
        where = f'namespace="{self.pods.namespace}"'
        # requests that wait in the gateway, and those that vLLM has accepted and queues itself
        queued = f'sum(haproxy_backend_current_queue{{{where},proxy="{self._backend(service)}"}})'
        waiting = f'sum(vllm:num_requests_waiting{{{where},pod=~"{object_name(service)}-.*"}})'
        query = f"({queued} or vector(0)) + ({waiting} or vector(0))" if service.engine == "vllm" else queued
        return Autoscaler(
            by=spec.by,
            api_version=LWS if service.group else APPS,
            kind="LeaderWorkerSet" if service.group else "Deployment",
            name=object_name(service),
            least=service.replicas,
            most=service.max_replicas,
            target=spec.waiting,
            cooldown=spec.cooldown,
            server=spec.prometheus or "",
            query=query,
        )

    def _backend(self, service: Service) -> str:
        return next(
            (one.name for one in self.plan.endpoints if service.name in (*one.replicas, *one.workers)), service.name
        )

    def _resource_claim(self, service: Service) -> ResourceClaim | None:
        if self.pods.settings.gpus_by != "dra" or service.gpus is None:
            return None
        model = self.pods.models.get(service.name)
        return ResourceClaim(f"{service.name}-gpus", service.gpus.count, (model.gpu_memory if model else None) or "")

    def _job(self, service: Service, scripts: Sequence[RenderedFile]) -> Workload:
        pod = self.pods.pod(service)
        # nothing in a Job can change, so other models or another script make another Job
        digest = hashlib.sha256(repr((pod, scripts)).encode()).hexdigest()[:8]
        own = labels(self.plan.name, service)
        pod = replace(pod, containers=tuple(replace(one, startup=None, liveness=None, readiness=None)
                                            for one in pod.containers))  # fmt: skip
        return Workload("Job", f"{service.name}-{digest}", service.comment, own, selector(self.plan.name, service), pod)

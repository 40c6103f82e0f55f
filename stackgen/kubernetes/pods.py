"""The pod of a service: its container, probes, variables and volumes.

Sources: Kubernetes 1.37, "Configure Liveness, Readiness and Startup Probes", "Pod Lifecycle" (the grace period includes
the `preStop` hook) and "Pod Security Standards".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stackgen.kubernetes.files import FileMaps
from stackgen.kubernetes.model import Container, Env, Mount, Pod, PodVolume, Source
from stackgen.kubernetes.names import (
    DRAIN_SECONDS,
    ENGINE_SECRET,
    FS_GROUP,
    GATEWAY_CONFIG,
    HTTP,
    INSTANCE,
    KEYS_SECRET,
    PACKED,
    SLACK_SECONDS,
    TLS_SECRET,
    TOKEN_SECRET,
    labels,
    selector,
)
from stackgen.kubernetes.probes import find_markers, liveness, port_of, readiness, startup
from stackgen.plan import Bind, EnvRef, Plan, Service, Tmpfs, Volume
from stackgen.spec import KubernetesModelSpec, KubernetesSpec
from stackgen.targets.kubernetes import escape, uses_pod_address

__all__ = ["PodBuilder"]

# of upstream's CUDA image of vLLM; other images have files that all users can read
DEFAULT_USER = (2000, 0)
GPU_RESOURCES = {"nvidia": "nvidia.com/gpu", "cdi": "nvidia.com/gpu", "amd": "amd.com/gpu"}
# reserved for a pod without settings: enough to be scheduled fairly, and no limit that could end it
ENGINE_REQUESTS = (("cpu", "1"), ("memory", "2Gi"))
SMALL_REQUESTS = (("cpu", "100m"), ("memory", "256Mi"))
LOADING_ROLES = ("engine", "worker")
LEADER_ONLY = ("STACKGEN_WATCH", "STACKGEN_WATCH_PORT")
CLIENT_KEY = "STACKGEN_API_KEY"


@dataclass(frozen=True, slots=True)
class PodBuilder:
    """Builds the pods of one plan. `models` are the settings of each model by the name of its service."""

    plan: Plan
    settings: KubernetesSpec
    models: Mapping[str, KubernetesModelSpec]
    files: FileMaps
    namespace: str

    def pod(self, service: Service, *, leader: bool = True) -> Pod:
        """The pod of `service`; without `leader`, the pod of the other nodes of its group."""
        mounts, volumes = self._mounts(service)
        user, group = _user(service)
        loads = service.role in LOADING_ROLES
        drain = DRAIN_SECONDS if service.role in ("engine", "worker", "api", "gateway") else 0
        init = self._init(service, leader)
        # the init containers mount what they need themselves
        return Pod(
            labels=self._labels(service),
            annotations=self._annotations(service),
            containers=(self._container(service, mounts, drain if leader else 0, leader),),
            init=init,
            volumes=volumes,
            user=user,
            group=group,
            fs_group=FS_GROUP if any(one.claim or one.secret or one.sources for one in volumes) else 0,
            supplemental_groups=tuple(int(one) for one in service.group_add),
            grace=drain + service.stop_grace_period + (SLACK_SECONDS if drain else 0),
            restart="Never" if service.role == "download" else "",
            node_selector=self._node_selector(service) if loads else (),
            tolerations=self._tolerations(service) if loads else (),
            runtime_class=self.settings.runtime_class or "" if service.gpus else "",
            spread=selector(self.plan.name, service) if self._is_spread(service) else (),
            pack=((INSTANCE, self.plan.name), PACKED) if service.pack else (),
            resource_claims=(("gpus", f"{service.name}-gpus"),) if self._uses_claims(service) else (),
            pull_secrets=self.settings.image_pull_secrets,
        )

    def image(self, service: Service) -> str:
        """The image of `service`, in the registry of the stack file if stackgen builds it."""
        own = service.build is not None or not service.pull
        return f"{self.settings.registry}/{service.image}" if own and self.settings.registry else service.image

    def replicas(self, service: Service) -> int:
        """How many pods of `service` run, unless an autoscaler decides."""
        return self.settings.gateway_replicas if service.role == "gateway" else service.replicas

    def _labels(self, service: Service) -> tuple[tuple[str, str], ...]:
        found = labels(self.plan.name, service)
        found += (PACKED,) if service.pack else ()
        # all groups of a model share the label: which group a pod belongs to is only known to its controller
        return (*found, ("stackgen-group", service.name)) if service.group else found

    def _annotations(self, service: Service) -> tuple[tuple[str, str], ...]:
        model = self.models.get(service.name)
        chosen = self.settings.annotations | (model.annotations if model else {})
        return tuple((dict(service.labels) | chosen).items())

    def _is_spread(self, service: Service) -> bool:
        return service.group is None and not service.pack and max(self.replicas(service), service.max_replicas) > 1

    def _uses_claims(self, service: Service) -> bool:
        return self.settings.gpus_by == "dra" and service.gpus is not None

    def _container(self, service: Service, mounts: tuple[Mount, ...], drain: int, leader: bool) -> Container:
        requests, limits = self._resources(service)
        health, port = service.health, port_of(service)
        entrypoint, arguments = service.entrypoint, service.command
        if service.group and not leader:
            health, port, arguments = service.group.health, 0, service.group.command
        if service.role == "gateway":
            entrypoint = (*service.entrypoint[:-1], service.entrypoint[-1].replace("_start.sh", "_reload.sh"))
        return Container(
            name=service.role,
            image=self.image(service),
            command=tuple(map(escape, entrypoint)),
            args=tuple(map(escape, arguments)),
            env=tuple(self._environment(service, leader)),
            ports=self._ports(service, port),
            requests=requests,
            limits=limits,
            claims=("gpus",) if self._uses_claims(service) else (),
            startup=startup(health) if health else None,
            liveness=liveness(health) if health else None,
            readiness=readiness(service, health, port) if health else None,
            drain_seconds=drain,
            read_only=service.read_only,
            mounts=mounts,
        )

    def _ports(self, service: Service, port: int) -> tuple[tuple[str, int], ...]:
        found = [(HTTP, port)] if port else []
        if service.role == "gateway":
            found.append(("admin", 8405))
            if any(isinstance(one, Bind) and one.target.startswith("/tls/") for one in service.mounts):
                found.append(("plain", 8001))
        if watch := dict(service.environment).get("STACKGEN_WATCH_PORT"):
            found.append(("watch", int(str(watch))))
        return tuple(found)

    def _environment(self, service: Service, leader: bool) -> list[Env]:
        found = []
        words = [*service.command, *(str(value) for _, value in service.environment)]
        words += service.group.command if service.group else ()
        if any(map(uses_pod_address, words)):
            # first: a variable can only refer to those before it
            found.append(Env("POD_IP", field="status.podIP"))
        for name, value in service.environment:
            if isinstance(value, EnvRef):
                secret = KEYS_SECRET if value.name == CLIENT_KEY else ENGINE_SECRET
                found.append(Env(name, secret=secret, key=value.name, optional=not value.required))
            # the other nodes of a group answer no requests, which the watch for hangs would take for a hang
            elif leader or name not in LEADER_ONLY:
                found.append(Env(name, escape(value)))
        if service.entrypoint[-1:] and service.entrypoint[-1].endswith("/supervise.sh"):
            # the kubelet restarts the container, with a new start-up probe
            found.append(Env("STACKGEN_RESTART", "exit"))
        return found

    def _resources(self, service: Service) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
        model = self.models.get(service.name)
        values = dict(ENGINE_REQUESTS if service.role in (*LOADING_ROLES, "download") else SMALL_REQUESTS)
        limits: dict[str, str] = {}
        if model and model.cpu:
            values["cpu"] = model.cpu
        if model and model.memory:
            # a limit above the request would let the node run out of memory
            values["memory"] = limits["memory"] = model.memory
        if service.gpus and not self._uses_claims(service):
            # request and limit must be equal, and whole numbers
            name = (model.gpu_resource if model else None) or GPU_RESOURCES[service.gpus.driver]
            values[name] = limits[name] = str(service.gpus.count)
        for name, count in (model.resources if model else {}).items():
            values[name] = limits[name] = str(count)
        return tuple(values.items()), tuple(limits.items())

    def _node_selector(self, service: Service) -> tuple[tuple[str, str], ...]:
        model = self.models.get(service.name)
        chosen = self.settings.node_selector if service.gpus or not model or not model.node_selector else {}
        return tuple((chosen | (model.node_selector if model else {})).items())

    def _tolerations(self, service: Service) -> tuple[tuple[str, str, str], ...]:
        model = self.models.get(service.name)
        found: list[tuple[str, str, str]] = [
            (one.key, one.value or "", one.effect or "")
            for one in (*self.settings.tolerations, *(model.tolerations if model else ()))
        ]
        # the taint that providers put on nodes with GPUs
        if service.gpus and (own := (GPU_RESOURCES[service.gpus.driver], "", "NoSchedule")) not in found:
            found.insert(0, own)
        return tuple(found)

    def _init(self, service: Service, leader: bool) -> tuple[Container, ...]:
        """What a pod waits for: the weights on the claim, and the first node of its group."""
        found = []
        image, scripts = self.image(service), Mount("scripts", "/stackgen", read_only=True)
        has_download = any(one.role == "download" for one in self.plan.services)
        if markers := find_markers(service.weights) if has_download else ():
            found.append(
                Container(
                    "wait-for-weights", image, ("/bin/sh", "/stackgen/wait_for_weights.sh"), markers,
                    requests=SMALL_REQUESTS, mounts=(scripts, Mount("models", "/models", read_only=True)),
                )
            )  # fmt: skip
            self.files.add_script("wait_for_weights.sh")
        if service.group and not leader:
            check = service.group.health.command
            found.append(
                Container(
                    "wait-for-leader", image, (*check[:2], "--wait"), tuple(map(escape, check[2:])),
                    requests=SMALL_REQUESTS, mounts=(scripts,),
                )
            )  # fmt: skip
        return tuple(found)

    def _mounts(self, service: Service) -> tuple[tuple[Mount, ...], tuple[PodVolume, ...]]:
        mounts: list[Mount] = []
        volumes: dict[str, PodVolume] = {}
        for one in service.mounts:
            if isinstance(one, Volume):
                claim = self.settings.weights.claim if one.name == "models" else self.settings.cache.claim
                volumes[one.name] = PodVolume(one.name, claim=claim or one.name)
                mounts.append(Mount(one.name, one.target, one.read_only))
            elif isinstance(one, Tmpfs):
                name = one.target.strip("/").replace("/", "-")
                volumes[name] = PodVolume(name)
                mounts.append(Mount(name, one.target))
            elif mount := self._bind(service, one, volumes):
                mounts.append(mount)
        if service.secrets:
            volumes["token"] = PodVolume("token", secret=TOKEN_SECRET)
            mounts.append(Mount("token", "/run/secrets", read_only=True))
        if service.shm_size:
            volumes["shm"] = PodVolume("shm", medium="Memory", size=_quantity(service.shm_size))
            mounts.append(Mount("shm", "/dev/shm"))
        return tuple(mounts), tuple(volumes.values())

    def _bind(self, service: Service, bind: Bind, volumes: dict[str, PodVolume]) -> Mount | None:
        if bind.source == "./scripts":
            volumes["scripts"] = PodVolume("scripts", config_map=self.files.scripts_of(service))
            return Mount("scripts", bind.target, read_only=True)
        if bind.source == "./gateway":
            sources = (
                Source("configMap", GATEWAY_CONFIG),
                Source("secret", KEYS_SECRET, "keys.map", "keys.map", optional=True),
            )
            volumes["gateway"] = PodVolume("gateway", sources=sources)
            return Mount("gateway", bind.target, read_only=True)
        if bind.source == "./monitoring":
            volumes["config"] = PodVolume("config", config_map="exporter")
            return Mount("config", bind.target, read_only=True)
        if bind.target.startswith("/tls/"):
            if "tls" in volumes:
                return None
            name = self.settings.tls_secret or TLS_SECRET
            keys = (("tls.crt", "site.crt"), ("tls.key", "site.crt.key"))
            volumes["tls"] = PodVolume("tls", sources=tuple(Source("secret", name, *pair) for pair in keys))
            return Mount("tls", "/tls", read_only=True)
        key = self.files.add_file(bind.source, bind.target)
        volumes["files"] = PodVolume("files", config_map="files")
        return Mount("files", bind.target, read_only=True, sub_path=key)


def _user(service: Service) -> tuple[int, int]:
    numbers = [int(part) for part in service.user.split(":") if part.isdecimal()]
    user, group = (numbers[0], numbers[-1]) if numbers else DEFAULT_USER
    # the gateway needs no root here: it gets its certificate with the group's permissions
    return (user, group) if user else (99, 99) if service.role == "gateway" else DEFAULT_USER


def _quantity(size: str) -> str:
    """Docker's `8g` as a quantity: Docker's units are powers of 1024 (docs.docker.com, "Resource constraints")."""
    number, unit = size.rstrip("bkmgBKMG"), size.lstrip("0123456789.").lower()
    return number + {"k": "Ki", "m": "Mi", "g": "Gi"}.get(unit[:1], "")

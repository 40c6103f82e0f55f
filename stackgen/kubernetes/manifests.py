"""Renders a plan as manifests for kustomize: `kubectl apply -k` reads the folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stackgen.kubernetes.files import FileMaps
from stackgen.kubernetes.model import Claim, Pairs, Policy
from stackgen.kubernetes.monitoring import monitoring
from stackgen.kubernetes.names import (
    ENGINE_SECRET,
    GATEWAY_CONFIG,
    INSTANCE,
    KEYS_SECRET,
    MANAGER,
    TLS_SECRET,
    TOKEN_SECRET,
)
from stackgen.kubernetes.pods import PodBuilder
from stackgen.kubernetes.policies import policies
from stackgen.kubernetes.workloads import WorkloadBuilder
from stackgen.plan import Bind, EnvRef, Plan, Service
from stackgen.render.templating import RenderedFile, render_template
from stackgen.spec import KubernetesModelSpec, KubernetesSpec

__all__ = ["SECRETS_FOLDER", "SecretFiles", "config_map_of", "render_manifests", "secret_files"]

KUSTOMIZATION, TEMPLATES = "kustomization.yaml", "kubernetes"
# written from .env, and not in version control
SECRETS_FOLDER = "secrets"


@dataclass(frozen=True, slots=True)
class Generator:
    """A ConfigMap or Secret that kustomize makes of files; with `fixed_name`, a change restarts no pod."""

    name: str
    comment: str
    files: tuple[str, ...] = ()
    envs: str = ""
    fixed_name: bool = False
    labels: Pairs = ()
    type: str = ""


@dataclass(frozen=True, slots=True)
class Kustomization:
    """All data of kustomization.yaml."""

    source: str
    namespace: str
    resources: tuple[str, ...]
    config_maps: tuple[Generator, ...]
    secrets: tuple[Generator, ...]
    configurations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Policies:
    """All data of network-policies.yaml."""

    stack: str
    labels: Pairs
    policies: tuple[Policy, ...]


@dataclass(frozen=True, slots=True)
class SecretFiles:
    """What must be in the folder of secrets: variables that engines and gateway read, and whole files.

    `variables` are names of .env; `token` and `tls` say whether the Hub's token and a certificate are needed.
    """

    engine: tuple[str, ...]
    client: tuple[str, ...]
    token: bool
    tls: bool


def render_manifests(
    plan: Plan, settings: KubernetesSpec, models: Mapping[str, KubernetesModelSpec], *, namespace: str, port: int,
    source: str,
) -> tuple[RenderedFile, ...]:  # fmt: skip
    """Renders `plan`, kustomization.yaml first. Equal plans give equal bytes. `port` is the gateway's.

    `models` are the settings of models by the name of their service. Raises StackgenError if a file that the stack file
    names can't be read.
    """
    files = FileMaps(plan)
    builder = WorkloadBuilder(plan, PodBuilder(plan, settings, models, files, namespace), port)
    own: Pairs = ((INSTANCE, plan.name), (MANAGER, "stackgen"))
    manifests: dict[str, RenderedFile] = {}

    def add(name: str, template: str, data: object) -> None:
        manifests[name] = RenderedFile(name, render_template(f"{TEMPLATES}/{template}.yaml.j2", data))

    if settings.create_namespace:
        add("namespace.yaml", "namespace", namespace)
    if claims := _claims(plan, settings, own):
        add("storage.yaml", "storage", claims)
    scripts = files.scripts()
    for service in plan.services:
        add(f"{service.name}.yaml", "workload", builder.build(service, _own_scripts(service, scripts)))
    if settings.network_policies:
        found = tuple(policies(plan, settings))
        add("network-policies.yaml", "network-policies", Policies(plan.name, own, found))
    if (watched := monitoring(plan, namespace, _merged(own, settings.monitoring_labels))) is not None:
        add("monitoring.yaml", "monitoring", watched)
    rendered = list(files.rendered())
    configurations = ("references.yaml",) if any(one.group for one in plan.services) else ()
    maps = _config_maps(rendered, own, settings.dashboard_labels)
    data = Kustomization(
        source, namespace, tuple(manifests), tuple(maps), tuple(_secrets(plan, settings, own)), configurations
    )
    if configurations:
        add("references.yaml", "references", None)
    kustomization = RenderedFile(KUSTOMIZATION, render_template(f"{TEMPLATES}/{KUSTOMIZATION}.j2", data))
    return (kustomization, *manifests.values(), *rendered)


def secret_files(plan: Plan, settings: KubernetesSpec) -> SecretFiles:
    """What `plan` reads from the folder of secrets."""
    names = dict.fromkeys(
        value for service in plan.services for _, value in service.environment if isinstance(value, EnvRef)
    )
    client = tuple(one.name for one in names if one.name == "STACKGEN_API_KEY")
    return SecretFiles(
        engine=tuple(dict.fromkeys(one.name for one in names if one.name not in client)),
        client=client,
        token=bool(plan.secrets),
        tls=_has_tls(plan) and not settings.tls_secret,
    )


def _own_scripts(service: Service, scripts: tuple[RenderedFile, ...]) -> tuple[RenderedFile, ...]:
    return (
        tuple(one for one in scripts if config_map_of(one.path) == "download-scripts")
        if service.role == "download"
        else ()
    )


def _has_tls(plan: Plan) -> bool:
    return any(isinstance(one, Bind) and one.target.startswith("/tls/") for one in plan.service("gateway").mounts)


def _claims(plan: Plan, settings: KubernetesSpec, own: Pairs) -> tuple[Claim, ...]:
    found = []
    for name, _ in plan.volumes:
        spec = settings.weights if name == "models" else settings.cache
        # pods on all nodes use both claims, and few default classes allow that
        storage_class = spec.storage_class or settings.weights.storage_class or ""
        if not spec.claim:
            comment = "The weights of all models: the Job `download` writes them, engines read them"
            found.append(
                Claim(
                    name, comment if name == "models" else "Compiled kernels, which make the next start faster", own,
                    spec.access_mode, spec.size, storage_class,
                )
            )  # fmt: skip
    return tuple(found)


def config_map_of(path: str) -> str:
    """The ConfigMap that the file at `path` belongs to; "" if it belongs to none."""
    folder, _, name = path.partition("/")
    if folder == "scripts":
        if name.startswith("gateway_"):
            return "gateway-scripts"
        return "download-scripts" if name in ("download.py", "store_owner.py", "vocabulary.py") else "scripts"
    if path == "monitoring/endpoints.yaml":
        return "exporter"
    if path.startswith("monitoring/dashboards/"):
        return f"dashboard-{name.rpartition('/')[2].removesuffix('.json')}" if path.endswith(".json") else ""
    return {"gateway": GATEWAY_CONFIG, "files": "files"}.get(folder, "")


COMMENTS = {
    "scripts": "What runs inside engines",
    "gateway-scripts": "What runs inside the gateway",
    "download-scripts": "What the Job `download` runs",
    GATEWAY_CONFIG: "HAProxy's configuration: the gateway loads changes within two minutes, without a restart",
    "exporter": "The endpoints that the exporter checks",
    "files": "Files that stack.yaml names",
}


def _merged(own: Pairs, more: Mapping[str, str]) -> Pairs:
    # stackgen's own labels win: `up` and `down` find the objects by them
    return (*own, *((name, value) for name, value in more.items() if name not in dict(own)))


def _config_maps(rendered: list[RenderedFile], own: Pairs, dashboards: Mapping[str, str]) -> list[Generator]:
    members: dict[str, list[str]] = {}
    for file in rendered:
        if name := config_map_of(file.path):
            members.setdefault(name, []).append(file.path)
    found = []
    for name, paths in sorted(members.items()):
        is_dashboard = name.startswith("dashboard-")
        fixed = name in (GATEWAY_CONFIG, "download-scripts") or is_dashboard
        comment = COMMENTS.get(name, "A dashboard for Grafana")
        found.append(
            Generator(
                name,
                comment,
                tuple(sorted(paths)),
                fixed_name=fixed,
                labels=_merged(own, dashboards if is_dashboard else {}),
            )
        )
    return found


def _secrets(plan: Plan, settings: KubernetesSpec, own: Pairs) -> list[Generator]:
    needed = secret_files(plan, settings)
    found = [
        Generator(ENGINE_SECRET, "The gateway's key for the engines", envs=f"{SECRETS_FOLDER}/engine.env", labels=own),
        Generator(
            KEYS_SECRET, "Keys of clients: the gateway loads changes within two minutes, without a restart",
            (f"{SECRETS_FOLDER}/keys.map", *(f"{SECRETS_FOLDER}/{name}" for name in needed.client)),
            fixed_name=True, labels=own,
        ),
    ]  # fmt: skip
    if needed.token:
        comment = "The token for the Hugging Face Hub; empty for public models"
        found.append(Generator(TOKEN_SECRET, comment, (f"{SECRETS_FOLDER}/hf_token",), fixed_name=True, labels=own))
    if needed.tls:
        files = (f"{SECRETS_FOLDER}/tls.crt", f"{SECRETS_FOLDER}/tls.key")
        found.append(
            Generator(TLS_SECRET, "The gateway's certificate", files, fixed_name=True, labels=own,
                      type="kubernetes.io/tls")
        )  # fmt: skip
    return found

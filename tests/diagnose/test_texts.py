"""Single messages that could not be reproduced here, as the named sources print them.

Messages of the Hub itself come from a closed-source server: their wording is that of reports.

`logs/` has complete logs of reproduced failures. Together they contain an example for every pattern of every rule.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from stackgen.diagnose import Evidence, Finding, ServiceEvidence, diagnose
from stackgen.diagnose.log_lines import strip_prefix
from stackgen.diagnose.rules import RULES
from tests.diagnose.fixtures import load_fixtures
from tests.diagnose.program_texts import EXAMPLES as PROGRAM_TEXTS
from tests.diagnose.reports import load_reports
from tests.diagnose.surrounding_texts import EXAMPLES as SURROUNDING_TEXTS
from tests.diagnose.texts import EXAMPLES, REFUSALS

DAEMON = "Error response from daemon: "
NETWORK = (
    DAEMON + "failed to set up container networking: driver failed programming external connectivity on endpoint "
    "demo-vllm-1 (46ab9155dd1c): "
)
HOOK = (
    DAEMON + "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create "
    "failed: unable to start container process: error during container init: error running prestart hook #0: exit "
    "status 1, stdout: , stderr: Auto-detected mode as 'legacy'\n"
)
ONLY = "https://huggingface.co/acme/one"


@dataclass(frozen=True)
class Text:
    """`expected` must be in the cause or the fix. `log` is the engine that logs it, "" for output of Compose."""

    rule: str
    text: str
    source: str
    log: str = ""
    expected: str = ""


TEXTS = (
    # Docker and Compose
    Text("SG-D001", DAEMON + "driver failed programming external connectivity on endpoint x: Bind for 0.0.0.0:8000 "
         "failed: port is already allocated", source="moby 28, libnetwork/portallocator", expected="port 8000"),
    Text("SG-D001", DAEMON + "Ports are not available: exposing port TCP 127.0.0.1:8000 -> 127.0.0.1:0: listen tcp4 "
         "127.0.0.1:8000: bind: address already in use", source="Docker Desktop, as public reports print it",
         expected="port 8000"),
    Text("SG-D001", NETWORK + "failed to bind host port 127.0.0.1:8000/tcp: address already in use",
         source="moby 29, daemon/libnetwork/portmapper", expected="port 8000"),
    Text("SG-D001", NETWORK + "failed to bind host port for [::1]:8000:172.18.0.2:8000/tcp: address already in use",
         source="moby 28, libnetwork/drivers/bridge/port_mapping_linux.go", expected="port 8000"),
    Text("SG-D014", NETWORK + "failed to bind host port for 10.9.8.7:8000:172.18.0.2:8000/tcp: cannot assign requested "
         "address", source="moby 28, libnetwork/drivers/bridge/port_mapping_linux.go", expected="10.9.8.7"),
    Text("SG-D014", DAEMON + "driver failed programming external connectivity on endpoint mysql (75be3c47a028): failed "
         "to bind port 192.168.1.129:3306/tcp: Error starting userland proxy: listen tcp4 192.168.1.129:3306: bind: "
         "cannot assign requested address", source="OpenSIPS/opensips-softswitch-ce issue 4", expected="192.168.1.129"),
    Text("SG-D015", NETWORK + "failed to bind host port 0.0.0.0:80/tcp: permission denied",
         source="moby 29, daemon/libnetwork/portmapper", expected="port 80"),
    Text("SG-D015", DAEMON + "driver failed programming external connectivity on endpoint x (31): Error starting "
         "userland proxy: listen tcp4 0.0.0.0:80: bind: permission denied", source="moby 28, cmd/docker-proxy",
         expected="port 80"),
    Text("SG-D015", DAEMON + "driver failed programming external connectivity on endpoint x: Error starting userland "
         "proxy: error while calling PortManager.AddPort(): cannot expose privileged port 80, you can add "
         "'net.ipv4.ip_unprivileged_port_start=80' to /etc/sysctl.conf (currently 1024), or set CAP_NET_BIND_SERVICE "
         "on rootlesskit binary, or choose a larger port number (>= 1024): listen tcp4 0.0.0.0:80: bind: permission "
         "denied", source="rootlesskit, pkg/port/builtin", expected="port 80"),
    Text("SG-D002", DAEMON + "pull access denied for acme/vllm, repository does not exist or may require 'docker "
         "login': denied: requested access to the resource is denied", source="moby 28, distribution",
         expected="acme/vllm"),
    Text("SG-D002", DAEMON + "manifest for vllm/vllm-openai:v9.9 not found: manifest unknown: manifest unknown",
         source="moby 28, distribution/errors.go", expected="vllm/vllm-openai:v9.9"),
    Text("SG-D002", "failed to resolve reference \"docker.io/acme/vllm:1\": docker.io/acme/vllm:1: not found",
         source="containerd 2, core/remotes/docker", expected="docker.io/acme/vllm:1"),
    Text("SG-D002", "Error manifest unknown", source="distribution, registry/api/v2/errors.go"),
    Text("SG-D002", DAEMON + "Get \"https://registry-1.docker.io/v2/\": net/http: request canceled while waiting for "
         "connection (Client.Timeout exceeded while awaiting headers)", source="docker/for-win issue 5983",
         expected="registry-1.docker.io"),
    Text("SG-D002", DAEMON + "Head \"https://registry-1.docker.io/v2/library/postgres/manifests/10\": net/http: TLS "
         "handshake timeout", source="xiaopeng163/docker.tips issue 4", expected="registry-1.docker.io"),
    Text("SG-D002", DAEMON + "Get \"https://registry-1.docker.io/v2/\": context deadline exceeded",
         source="Go, net/http and context"),
    Text("SG-D002", DAEMON + "Get \"https://ghcr.io/v2/\": tls: failed to verify certificate: x509: certificate signed "
         "by unknown authority", source="Go, crypto/x509", expected="ghcr.io"),
    Text("SG-D002", DAEMON + "Get \"https://registry-1.docker.io/v2/\": dial tcp [2600:1f18::1]:443: connect: network "
         "is unreachable", source="Linux, ENETUNREACH, as Go prints it"),
    Text("SG-D002", DAEMON + "Get \"https://registry-1.docker.io/v2/\": dial tcp: lookup registry-1.docker.io on "
         "127.0.0.53:53: server misbehaving", source="Go, net/dnsclient.go"),
    Text("SG-D002", DAEMON + "Head \"https://registry.acme.io/v2/vllm/manifests/1\": unauthorized: authentication "
         "required", source="distribution, registry/api/errcode", expected="registry.acme.io"),
    Text("SG-D002", "vllm-one Error: pulling image: unauthorized: authentication required",
         source="distribution, registry/api/errcode"),
    Text("SG-D002", DAEMON + "toomanyrequests: You have reached your pull rate limit. You may increase the limit by "
         "authenticating and upgrading: https://www.docker.com/increase-rate-limit",
         source="Docker Hub's documentation"),
    Text("SG-D002", DAEMON + "No such image: acme/vllm:1", source="moby 28, daemon/images", expected="acme/vllm:1"),
    Text("SG-D003", "image with reference acme/vllm:1 was found but its platform (linux/arm64) does not match the "
         "specified platform (linux/amd64)", source="moby 28, daemon/images/image.go", expected="acme/vllm:1"),
    Text("SG-D003", "no matching manifest for linux/arm64/v8 in the manifest list entries",
         source="moby 28, distribution"),
    Text("SG-D003", "exec /usr/bin/python3: exec format error", source="Linux, ENOEXEC; runc"),
    Text("SG-D005", "failed to connect to the docker API at unix:///var/run/docker.sock; check if the path is correct "
         "and if the daemon is running: dial unix /var/run/docker.sock: connect: no such file or directory",
         source="Docker CLI 29: launchdarkly/find-code-references issue 65"),
    Text("SG-D005", "permission denied while trying to connect to the Docker daemon socket at "
         "unix:///var/run/docker.sock", source="Docker CLI 28, client/request.go"),
    Text("SG-D006", HOOK + "error mounting \"/srv/models\" to rootfs at \"/srv/models\": mount src=/srv/models, "
         "dst=/srv/models: not a directory", source="runc 1.2, libcontainer/rootfs_linux.go", expected="/srv/models"),
    Text("SG-D006", DAEMON + "failed to populate volume: error while mounting volume '/var/lib/docker/volumes/x/_data'"
         ": failed to mount local volume: mount /srv/models:/var/lib/docker/volumes/x/_data, flags: 0x1000: no such "
         "file or directory", source="moby 28, volume/local", expected="/srv/models"),
    Text("SG-H008", DAEMON + "failed to register layer: write /usr/lib/libcublas.so.13: no space left on device",
         source="Go, syscall ENOSPC; moby 28, layer store"),
    Text("SG-M012", DAEMON + "failed to create task for container: failed to create shim task: OCI runtime create "
         "failed: runc create failed: unable to start container process: container init was OOM-killed (memory limit "
         "too low?)", source="runc 1.1, libcontainer/process_linux.go"),
    # GPUs in Docker
    Text("SG-G001", "docker: " + DAEMON + "could not select device driver with capabilities: [[gpu]].",
         source="moby, daemon/devices.go, as public reports quote it"),
    Text("SG-G001", DAEMON + "could not select device driver \"\" with capabilities: [[gpu]]",
         source="moby, daemon/devices.go"),
    Text("SG-G001", DAEMON + "could not select device driver \"cdi\" with capabilities: []",
         source="NVIDIA/nvidia-container-toolkit issue 434", expected='"cdi"'),
    Text("SG-G001", DAEMON + "unknown or invalid runtime name: nvidia", source="moby 28, daemon/daemon_unix.go"),
    Text("SG-G001", HOOK.replace("\n", " ") + "exec: nvidia-container-runtime-hook: executable file not found in $PATH",
         source="runc, libcontainer/configs"),
    Text("SG-G013", HOOK + "nvidia-container-cli: initialization error: nvml error: driver/library version mismatch: "
         "unknown", source="NVIDIA/k8s-device-plugin issue 1431", expected="driver/library version mismatch"),
    Text("SG-G006", HOOK + "nvidia-container-cli: device error: 1: unknown device: unknown",
         source="NVIDIA/nvidia-container-toolkit issue 29; ALFA-group/adversarial-code-generation issue 1"),
    Text("SG-G006", DAEMON + "CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=3: unknown",
         source="cncf-tags/container-device-interface, pkg/cdi/cache.go", expected="nvidia.com/gpu=3"),
    Text("SG-G016", DAEMON + "failed to create task for container: failed to create shim task: OCI runtime create "
         "failed: could not apply required modification to OCI specification: error modifying OCI spec: failed to "
         "inject CDI devices: unresolvable CDI devices nvidia.com/gpu=all: unknown",
         source="NVIDIA/nvidia-container-toolkit issue 434", expected="nvidia-ctk cdi generate"),
    # GPUs in the engines
    Text("SG-G002", "RuntimeError: The NVIDIA driver on your system is too old (found version 12080). Please update "
         "your GPU driver by downloading and installing a new version", source="torch 2.x, torch/csrc/cuda/Module.cpp",
         log="fastchat", expected="an image whose CUDA version is at most"),
    Text("SG-G002", "RuntimeError: CUDA error: CUDA driver version is insufficient for CUDA runtime version",
         source="CUDA error 35", log="vllm"),
    Text("SG-G003", "OSError: libnvidia-ml.so.1: cannot open shared object file: No such file or directory",
         source="glibc, dlopen", log="vllm"),
    Text("SG-G003", "RuntimeError: Failed to infer device type, please set the environment variable "
         "`VLLM_LOGGING_LEVEL=DEBUG` to turn on verbose logging to help debug the issue.",
         source="vLLM 0.32.0, config/device.py", log="vllm"),
    Text("SG-G004", "NVIDIA GeForce RTX 5090 with CUDA capability sm_120 is not compatible with the current PyTorch "
         "installation.", source="torch 2.x, torch/cuda/__init__.py", log="vllm"),
    Text("SG-G005", "pynvml.NVMLError_DriverNotLoaded: Driver Not Loaded", source="nvidia-ml-py, pynvml.py",
         log="vllm"),
    Text("SG-G005", "RuntimeError: CUDA error: unknown error", source="CUDA error 999", log="vllm"),
    Text("SG-G006", "torch.AcceleratorError: CUDA error: invalid device ordinal", source="CUDA error 101; torch 2.8",
         log="vllm"),
    Text("SG-G007", "RuntimeError: CUDA error: no CUDA-capable device is detected", source="CUDA error 100",
         log="vllm"),
    Text("SG-G015", "  Value error, World size (4) is larger than the number of available GPUs (2) in this node. If "
         "this is intentional and you are using:", source="vLLM 0.32.0, config/parallel.py", log="vllm",
         expected="4 GPUs, but only 2"),
    Text("SG-G011", "RuntimeError: NCCL error: unhandled system error (run with NCCL_DEBUG=INFO for details)",
         source="vLLM 0.32.0, pynccl_wrapper.py", log="vllm"),
    Text("SG-G011", "torch.distributed.DistBackendError: NCCL error in: /pytorch/torch/csrc/distributed/c10d/"
         "NCCLUtils.cpp:94, invalid usage (run with NCCL_DEBUG=WARN for details), NCCL version 2.27.5",
         source="torch 2.8, c10d/NCCLUtils.cpp", log="vllm"),
    Text("SG-G011", "ncclInvalidUsage: This usually reflects invalid usage of NCCL library.",
         source="torch 2.8, NCCLUtils.cpp", log="vllm"),
    Text("SG-G011", "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting "
         "prematurely.", source="torch 2.8, NCCLUtils.cpp", log="vllm"),
    Text("SG-G011", "[rank0]:[E321 02:07:08.408271257 ProcessGroupNCCL.cpp:607] [Rank 0] Watchdog caught collective "
         "operation timeout: WorkNCCL(SeqNum=1580, OpType=ALLREDUCE, NumelIn=466119168, NumelOut=466119168, "
         "Timeout(ms)=600000) ran for 600060 milliseconds before timing out.", source="hiyouga/LlamaFactory issue 7396",
         log="vllm"),
    # memory
    Text("SG-M008", "torch.AcceleratorError: CUDA error: out of memory", source="CUDA error 2; torch 2.8", log="vllm"),
    Text("SG-M001", "ValueError: Cannot auto-fit max_model_len: not enough GPU memory available to serve even a single "
         "token. Try increasing `gpu_memory_utilization`.", source="vLLM 0.32.0, v1/core/kv_cache_utils.py",
         log="vllm"),
    Text("SG-M010", "misc/shmutils.cc:72 NCCL WARN Call to posix_fallocate failed : No space left on device",
         source="NCCL 2.2x, misc/shmutils.cc", log="vllm"),
    Text("SG-M010", "RuntimeError: DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that "
         "dataloader's workers are out of shared memory. Please try to raise your shared memory limit.",
         source="torch 2.x, torch/utils/data/_utils/signal_handling.py", log="vllm"),
    Text("SG-M011", "ValueError: Available memory on node 0 (3.1/24.0 GiB) on startup is less than desired CPU memory "
         "utilization (0.92, 22.08 GiB). On the CPU backend, the `--gpu-memory-utilization` flag controls the fraction "
         "of CPU memory reserved (despite its name).", source="vLLM 0.32.0, v1/worker/cpu_worker.py", log="vllm",
         expected="22.08"),
    # vLLM and requests
    Text("SG-V008", "ValueError: The repository acme/one contains custom code which must be executed to correctly load "
         f"the model. You can inspect the repository content at {ONLY}.",
         source="transformers 5.24, dynamic_module_utils.py", log="vllm"),
    Text("SG-V014", "FileNotFoundError: the supplied chat template path doesn't exist",
         source="vLLM 0.32.0, renderers/chat_utils.py", log="vllm"),
    Text("SG-V015", "ValueError: Cannot use chat template functions because tokenizer.chat_template is not set and no "
         "template argument was passed!", source="transformers 5.24, tokenization_utils_base.py", log="vllm"),
    Text("SG-V020", "ValueError: LoRA rank 64 is greater than max_lora_rank 16.",
         source="vLLM 0.32.0, lora/peft_helper.py", log="vllm", expected="64 is above the limit 16"),
    Text("SG-V020", "ValueError: /srv/sql doesn't contain tensors", source="vLLM 0.32.0, lora/lora_model.py",
         log="vllm", expected="/srv/sql has neither adapter_model.safetensors"),
    Text("SG-V020", "ValueError: While loading /srv/sql, expected target modules in {'qkv_proj'} but received "
         "['model.layers.0.mlp.fc1']. Please verify that the loaded LoRA module is correct",
         source="vLLM 0.32.0, lora/lora_model.py", log="vllm", expected="/srv/sql changes layers"),
    # FastChat
    Text("SG-F001", "pydantic.env_settings.SettingsError: error parsing env var \"api_keys\"", source="pydantic 1.10",
         log="fastchat"),
    Text("SG-F001", "pydantic_settings.sources.SettingsError: error parsing value for field \"api_keys\" from source "
         "\"EnvSettingsSource\"", source="pydantic-settings 2", log="fastchat"),
    Text("SG-F002", '  File "/opt/venv/lib/python3.11/site-packages/fastchat/conversation.py", line 405, in '
         "get_conv_template\n    return conv_templates[name].copy()\nKeyError: 'gemma-3'",
         source="FastChat 0.2.36, conversation.py", log="fastchat", expected="gemma-3"),
    # files
    Text("SG-L005", f"OSError: /models/one does not appear to have a file named config.json. Checkout '{ONLY}/tree/"
         "main' for available files.", source="transformers 4.57, utils/hub.py, cached_files", log="vllm",
         expected="/models/one"),
    Text("SG-L006", "OSError: Can't load tokenizer for '/models/one'. If you were trying to load it from "
         "'https://huggingface.co/models', make sure you don't have a local directory with the same name.",
         source="transformers 4.57, tokenization_utils_base.py", log="vllm"),
    Text("SG-L006", "OSError: Unable to load vocabulary from file. Please check that the provided vocabulary is "
         "accessible and not corrupted.", source="transformers 4.57, tokenization_utils_base.py", log="fastchat"),
    Text("SG-L007", "huggingface_hub.errors.HFValidationError: Repo id must use alphanumeric chars, '-', '_' or '.'. "
         "The name cannot start or end with '-' or '.' and the maximum length is 96: './one'.",
         source="huggingface_hub 0.36, utils/_validators.py", log="vllm", expected="./one"),
    Text("SG-L008", "PermissionError: [Errno 13] Permission denied: '/models/one/config.json'",
         source="Python, errno 13", log="vllm", expected="/models/one/config.json"),
    Text("SG-L008", "PermissionError: [Errno 13] Permission denied: '/root/.cache/huggingface/hub/models--acme--one/"
         "snapshots/abc/config.json'", source="Python, errno 13", log="vllm"),
    Text("SG-L008", "srv load_model: /models/one.gguf: Permission denied", source="Linux, errno 13", log="llamacpp"),
    # the Hub
    Text("SG-H001", "huggingface_hub.errors.GatedRepoError: 401 Client Error. (Request ID: Root=1-6)",
         source="huggingface_hub 0.36, utils/_http.py", log="vllm"),
    Text("SG-H001", "Access to model acme/one is restricted. You must have access to it and be authenticated to access "
         "it. Please log in.", source="the Hub's own message, as users report it", log="vllm", expected="acme/one"),
    Text("SG-H001", "OSError: You are trying to access a gated repo.\nMake sure to have access to it at "
         f"{ONLY}.\n401 Client Error. (Request ID: Root=1-6)", source="transformers 5.24, utils/hub.py, cached_files",
         log="vllm"),
    Text("SG-H001", f"OSError: acme/one is a gated repository. Make sure to request access at {ONLY} and pass a token "
         "having permission to this repo either by logging in with `hf auth login` or by passing `token=<your_token>`.",
         source="transformers 5.24, utils/hub.py, has_file", log="vllm", expected="acme/one needs a token"),
    Text("SG-H002", "OSError: You are trying to access a gated repo.\nMake sure to have access to it at "
         f"{ONLY}.\n403 Client Error. (Request ID: Root=1-6)\n\nCannot access gated repo for url {ONLY}/resolve/main/"
         "config.json.\nAccess to model acme/one is restricted and you are not in the authorized list. Visit "
         f"{ONLY} to ask for access.", source="transformers 5.24, utils/hub.py; huggingface_hub 2.4, utils/_http.py",
         log="vllm", expected="acme/one is gated"),
    Text("SG-H002", "huggingface_hub.errors.GatedRepoError: 403 Client Error. (Request ID: Root=1-6)",
         source="huggingface_hub 0.36, utils/_http.py", log="vllm"),
    Text("SG-H002", "403 Forbidden: Please enable access to public gated repositories in your fine-grained token "
         f"settings to view this repository..\nCannot access content at: {ONLY}/resolve/main/config.json.\nMake sure "
         "your token has the correct permissions.",
         source="huggingface_hub 2.4, utils/_http.py, around the Hub's own message", log="vllm"),
    Text("SG-H002", "OSError: You are trying to access a gated repo.\nMake sure to have access to it at "
         f"{ONLY}.\n403 Client Error. (Request ID: Root=1-6)\n\nYour request to access model acme/one is awaiting a "
         "review from the repo authors.", source="the Hub's own message, as users report it", log="vllm",
         expected="acme/one"),
    Text("SG-H004", "huggingface_hub.errors.RevisionNotFoundError: 404 Client Error. (Request ID: Root=1-6)",
         source="huggingface_hub 0.36, utils/_http.py", log="vllm"),
    Text("SG-H004", "OSError: v9 is not a valid git identifier (branch name, tag name or commit id) that exists for "
         f"this model name. Check the model page at '{ONLY}' for available revisions.",
         source="transformers 5.24, utils/hub.py", log="vllm", expected="no such revision: v9"),
    Text("SG-H005", "huggingface_hub.errors.RepositoryNotFoundError: 401 Client Error. (Request ID: Root=1-6)",
         source="huggingface_hub 0.36, utils/_http.py", log="vllm"),
    Text("SG-H005", "OSError: acme/one is not a local folder and is not a valid model identifier listed on "
         "'https://huggingface.co/models'", source="transformers 5.24, utils/hub.py", log="vllm", expected="acme/one"),
    Text("SG-H005", "stackgen: cannot download acme/one: none of its files matches ['*.gguf']; look at its list of "
         "files", source="templates/images/common/download.py", log="vllm", expected="acme/one"),
    Text("SG-H006", f"huggingface_hub.errors.OfflineModeIsEnabled: Cannot reach {ONLY}: offline mode is enabled. To "
         "disable it, please unset the `HF_HUB_OFFLINE` environment variable.",
         source="huggingface_hub 0.36, utils/_http.py", log="vllm"),
    Text("SG-H007", f"HTTP Error 429 thrown while requesting GET {ONLY}/resolve/main/config.json",
         source="huggingface_hub 2.4, utils/_http.py", log="vllm"),
    Text("SG-H009", "stackgen: cannot download acme/one: Permission denied: /hub/.locks; give uid 1000 access to it",
         source="templates/images/common/download.py", log="vllm", expected="/hub/.locks"),
    Text("SG-H009", "stackgen: cannot download acme/one: Read-only file system: /hub/.locks; use a volume",
         source="templates/images/common/download.py", log="vllm", expected="/hub/.locks"),
    Text("SG-H009", "PermissionError: [Errno 13] Permission denied: '/root/.cache/huggingface/hub'",
         source="Python, errno 13", log="vllm", expected="/root/.cache/huggingface/hub"),
    Text("SG-H009", "PermissionError: [Errno 13] Permission denied: '/root/.cache/vllm/modelinfos/x.json'",
         source="Python, errno 13", log="vllm", expected="/root/.cache/vllm"),
    Text("SG-H009", "OSError: PermissionError at /root/.cache/huggingface/hub/.locks/models--acme--one/x.lock when "
         "downloading acme/one. Check cache directory permissions. Common causes: 1) another user is downloading the "
         "same model (please wait); 2) a previous download was canceled and the lock file needs manual removal.",
         source="transformers 5.24, utils/hub.py, cached_files", log="vllm", expected="x.lock can't be written"),
    Text("SG-H010", "stackgen: cannot download acme/one: no connection to https://huggingface.co: timed out; check "
         "network, DNS and proxy", source="templates/images/common/download.py", log="vllm",
         expected="https://huggingface.co"),
    Text("SG-H010", "huggingface_hub.errors.LocalEntryNotFoundError: An error happened while trying to locate the file "
         "on the Hub and we cannot find the requested files in the local cache. Please check your connection and try "
         "again or make sure your Internet connection is on.", source="huggingface_hub 0.36, file_download.py",
         log="vllm"),
    # connection
    Text("SG-C002", "ERROR:    [Errno 98] error while attempting to bind on address ('0.0.0.0', 8000): address already "
         "in use", source="asyncio, base_events.py", log="fastchat"),
    Text("SG-C003", "aiohttp.client_exceptions.ClientConnectorError: Cannot connect to host localhost:8000 ssl:default "
         "[Connect call failed ('127.0.0.1', 8000)]", source="aiohttp 3.13, client_exceptions.py", log="client",
         expected="http://SERVICE:8000/v1"),
    Text("SG-D013", "stackgen: cannot start vllm: No such file or directory", source="stackgen's supervisor",
         log="vllm", expected="vllm"),
    *(Text(rule, text, source, log) for rule, text, source, log in (*EXAMPLES, *PROGRAM_TEXTS, *SURROUNDING_TEXTS)),
)  # fmt: skip


def evidence(text: Text) -> Evidence:
    if not text.log:
        return Evidence(compose_output=text.text)
    engine = text.log if text.log in ("vllm", "fastchat", "llamacpp") else ""
    return Evidence((ServiceEvidence("a", engine=engine, state="exited", exit_code=1, log=text.text),))


def found(text: Text) -> Finding:
    return diagnose(evidence(text))[0]


@pytest.mark.parametrize("text", TEXTS, ids=lambda one: f"{one.rule}-{one.source[:20]}")
def test_a_message_is_matched_by_its_rule(text: Text) -> None:
    one = found(text)
    assert one.id == text.rule, (one.id, one.evidence)
    assert text.expected in f"{one.cause} {one.fix}" and "?" not in one.title + one.cause


def test_a_text_of_two_causes_is_reported_once() -> None:
    for text in TEXTS:
        if text.rule == "SG-H002":
            assert [one.id for one in diagnose(evidence(text))] == ["SG-H002"], text.text


def test_another_key_error_is_not_a_missing_conversation_template() -> None:
    log = "Traceback (most recent call last):\nKeyError: 'chat_template'\n"
    for engine in ("fastchat", "vllm"):
        service = ServiceEvidence("a", engine=engine, state="exited", exit_code=1, log=log)
        assert diagnose(Evidence((service,)))[0].id == "SG-0000"


def collect_examples() -> dict[str, list[str]]:
    """The lines of all examples, by rule."""
    texts: dict[str, list[str]] = {one.id: [] for one in RULES}
    for text in TEXTS:
        texts[text.rule] += [strip_prefix(line) for line in text.text.splitlines()]
    for log in load_fixtures():
        lines = texts.setdefault(log.rule, [])
        for one in log.evidence.services:
            lines += [strip_prefix(line) for line in f"{one.log}\n{one.error}\n{one.health_log}".splitlines()]
        lines += log.evidence.compose_output.splitlines()
        lines += [f"{check}: {message}" for check, message in log.evidence.checks]
    for id, line in REFUSALS:
        texts[id].append(strip_prefix(line))
    for report in load_reports():
        # an unknown failure is no rule's example
        texts.setdefault(report.rule, []).extend([strip_prefix(line) for line in report.text.splitlines()])
    for id, check, message in CHECKS:
        texts[id].append(f"{check}: {message}")
    return texts


def test_every_pattern_of_every_rule_matches_an_example() -> None:
    texts = collect_examples()
    unmet = [
        f"{one.id} {pattern.pattern}"
        for one in RULES
        for pattern in one.all_patterns
        if not any(pattern.search(line) for line in texts[one.id])
    ]
    assert unmet == []


# messages of stackgen's own check, copied from stackgen/check, and engines' answers to requests
CHECKS = (
    ("SG-C003", "resolve", "Could not resolve host: vllm-one"),
    ("SG-C004", "http", "127.0.0.1:8000 does not speak HTTP: it sent '220 mail.example.org ESMTP'"),
    ("SG-C011", "models", "the server requires a key, but none was given"),
    # the wording of older versions
    ("SG-C011", "models", "the server wants a key, and none is given"),
    ("SG-S008", "stream", "the stream is buffered: 22 chunks arrived in 1 read"),
    ("SG-S008", "stream", "buffered: 22 chunks arrived in 1 read"),
    ("SG-V017", "chat", "This model's maximum context length is 2048 tokens. However, your prompt contains 3000 input "
     "tokens, which exceeds this limit even without any output tokens."),
)  # fmt: skip


@pytest.mark.parametrize(("id", "check", "message"), CHECKS)
def test_messages_of_the_check_are_diagnosed(id: str, check: str, message: str) -> None:
    works = ServiceEvidence("a", engine="vllm", state="running", health="healthy")
    assert diagnose(Evidence((works,), checks=((check, message),)))[0].id == id


@pytest.mark.parametrize(("id", "line"), REFUSALS)
def test_a_refused_request_in_a_log_is_diagnosed(id: str, line: str) -> None:
    log = f'{line}\nINFO:     10.0.0.1:4 - "POST /v1/chat/completions HTTP/1.1" 400 Bad Request\n'
    running = ServiceEvidence("a", state="running", health="healthy", log=log)
    assert diagnose(Evidence((running,)))[0].id == id

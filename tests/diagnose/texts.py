"""Examples of messages from public reports, as (rule, text, source, engine whose log has it; "" for Compose)."""

from __future__ import annotations

DAEMON = "Error response from daemon: "
HOOK = DAEMON + "failed to create task for container: error running prestart hook #0: exit status 1, stderr: "
CLI = HOOK + "Auto-detected mode as 'legacy'\nnvidia-container-cli: "

EXAMPLES: tuple[tuple[str, str, str, str], ...] = (
    ("SG-X003", "ValueError: Warning: User-specified context_length (99999) is greater than the derived context_length "
     "(2048). This may lead to incorrect model outputs or CUDA errors. Note that the derived context_length may differ "
     "from max_position_embeddings in the model's config. To allow overriding this maximum, set the env var "
     "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1", "SGLang 0.5.23, configs/model_config.py", "sglang"),
    ("SG-C026", "torch.distributed.DistNetworkError: The client socket has timed out after 300000ms while trying to "
     "connect to (spark-1, 29501).", "nvidia-cosmos/cosmos-rl issue 681 (2026-05)", "sglang"),
    ("SG-V062", "ValueError: Expected there to be 1 prompt updates corresponding to 1 image items, but instead found 0 "
     "prompt updates!", "vllm-project/vllm issue 23238 (2025-08)", "vllm"),
    ("SG-X005", "[2026-11-29 12:03:30 TP0] Scheduler watchdog timeout (self.watchdog_timeout=300, self.soft=False)",
     "SGLang 0.5.23, utils/watchdog.py", "sglang"),
    ("SG-D002", 'failed to resolve reference "ghcr.io/acme/a:1": unexpected status from GET request to '
     "https://ghcr.io/token: "
     "429 Too Many Requests", "containerd 2.4, core/remotes/errors/errors.go", ""),
    ("SG-D002", 'failed to resolve reference "ghcr.io/acme/a:1": failed to do request: Head '
     '"https://ghcr.io/v2/acme/a/manifests/1": dial tcp: lookup ghcr.io on 127.0.0.53:53: no such host',
     "containerd 2, core/remotes/docker", ""),
    ("SG-D002", 'failed to resolve reference "ghcr.io/acme/a:1": failed to do request: tls: failed to verify '
     "certificate: x509: certificate signed by unknown authority", "containerd 2, core/remotes/docker", ""),
    ("SG-D002", 'failed to resolve reference "ghcr.io/acme/a:1": failed to authorize: unexpected status from GET '
     "request: 401 Unauthorized", "containerd 2, core/remotes/docker", ""),
    ("SG-D002", 'failed to resolve reference "ghcr.io/acme/a:1": unexpected status code 418',
     "containerd 2, core/remotes/docker", ""),
    ("SG-D002", 'failed to resolve reference "ghcr.io/acme/a:1": failed to do request: connection refused',
     "containerd 2, core/remotes/docker", ""),
    ("SG-D022", "failed to create network llm_default: " + DAEMON + "(iptables failed: iptables -t nat -A DOCKER -j "
     "RETURN: iptables: No chain/target/match by that name.\n (exit status 1))", "iptables 1.8, libnetwork", ""),
    ("SG-D023", DAEMON + "failed to create task for container: OCI runtime create failed: runc "
     "create failed: the frobnicator is out of plums", "runc 1.3, libcontainer", ""),
    ("SG-D025", "unknown shorthand flag: 'f' in -f", "pflag 1.0, flag.go", ""),
    ("SG-D025", "docker: 'compose' is not a docker command.", "docker/cli 27, cli-plugins/manager", ""),
    ("SG-D025", DAEMON + "client version 1.24 is too old. Minimum supported API version is 1.44, please upgrade your "
     "client to a newer version", "moby 29, daemon/server/middleware/version.go", ""),
    ("SG-D006", DAEMON + 'runc create failed: error mounting "/srv/models" to rootfs at "/srv/models": mount '
     "/srv/models: no such file or directory", "runc 1.2, libcontainer/rootfs_linux.go", ""),
    ("SG-D010", "validating /srv/compose.yaml: services.a additional properties 'foo' not allowed",
     "Compose 2.40, compose-go", ""),
    ("SG-D010", 'service "a" has neither an image nor a build context specified: invalid compose project',
     "Compose 2.40, compose-go", ""),
    ("SG-D010", 'service "a" depends on undefined service "b": invalid compose project', "Compose 2.40, compose-go",
     ""),
    ("SG-D010", 'service "a" declares mutually exclusive `network_mode` and `networks`: invalid compose project',
     "Compose 2.40, compose-go", ""),
    ("SG-G011", "RuntimeError: NCCL error: unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
     "vLLM 0.32.0, pynccl_wrapper.py", "vllm"),
    ("SG-G011", "ncclUnhandledCudaError: Call to CUDA function failed.", "torch 2.8, NCCLUtils.cpp", "vllm"),
    ("SG-G011", "DistBackendError: NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94"
     ", remote process exited or there was a network error, NCCL version 2.27.5", "torch 2.8, NCCLUtils.cpp", "vllm"),
    ("SG-G025", "Device 0: AMD Radeon Graphics, gfx1151\nRuntimeError: Failed to infer device type",
     "vllm-project/vllm issue 39378", "vllm"),
    ("SG-G001", DAEMON + 'could not select device driver "cdi" with capabilities: [[gpu]]', "moby 28", ""),
    ("SG-G005", "pynvml.NVMLError_Unknown: Unknown Error", "nvidia-ml-py", "vllm"),
    ("SG-G005", "pynvml.NVMLError_LibRmVersionMismatch: RM has detected an NVML/RM version mismatch.",
     "nvidia-ml-py", "vllm"),
    ("SG-G005", "Failed to initialize NVML: Driver/library version mismatch", "nvidia-smi", "vllm"),
    ("SG-G005", "Failed to initialize NVML: GPU access blocked by the operating system", "nvidia-smi", "vllm"),
    ("SG-G005", "ggml_cuda_init: failed to initialize CUDA: unknown error", "ggml-org/llama.cpp issue 7218",
     "llamacpp"),
    ("SG-G013", CLI + "initialization error: nvml error: driver not loaded: unknown", "libnvidia-container", ""),
    ("SG-H008", "OSError: [Errno 122] Disk quota exceeded: '/hub/x'", "Linux, EDQUOT", "vllm"),
    ("SG-H010", "stackgen: cannot download acme/one: the hub answers HTTP 503",
     "templates/images/common/download.py", "vllm"),
    ("SG-L009", "OSError: [Errno 5] Input/output error: '/models/x/model-00001.safetensors'", "Linux", "vllm"),
    ("SG-M013", "RuntimeError: hipErrorOutOfMemory", "HIP", "vllm"),
    ("SG-D016", "IsADirectoryError: [Errno 21] Is a directory: '/templates/chat.jinja'", "Python 3.12", "vllm"),
    ("SG-D016", DAEMON + "failed to create task for container: runc create failed: error mounting "
     "\"/srv/chat.jinja\" to "
     "rootfs at \"/chat.jinja\": mount /srv/chat.jinja:/chat.jinja, flags: 0x5001: not a directory: Are you trying "
     "to mount "
     "a directory onto a file (or vice-versa)?", "runc 1.3", ""),
    ("SG-D018", DAEMON + 'Conflict. The container name "/llm" is already in use by container "9e0bb994". You have to '
     "remove (or rename) that container to be able to reuse that name.", "moby 28, daemon/names.go", ""),
    ("SG-D019", "network proxy declared as external, but could not be found", "Compose 5.5, pkg/compose/create.go", ""),
    ("SG-M013", "RuntimeError: HIP error: out of memory", "HIP error 2", "vllm"),
    ("SG-M013", "HSA_STATUS_ERROR_OUT_OF_RESOURCES: The runtime failed to allocate the necessary resources.",
     "ROCR runtime", "vllm"),
    ("SG-M015", "OSError: [Errno 28] No space left on device: '/dev/shm/psm_1'", "Python 3.12", "vllm"),
    ("SG-M016", "OSError: [Errno 28] No space left on device: '/tmp/torchinductor_root/x'", "Python 3.12", "vllm"),
    ("SG-G002", "ggml_cuda_init: failed to initialize CUDA: system has unsupported display driver / cuda driver "
     "combination", "CUDA error 803", "llamacpp"),
    ("SG-G007", "ggml_cuda_init: failed to initialize CUDA: no CUDA-capable device is detected", "CUDA error 100",
     "llamacpp"),
    ("SG-G018", "nvcc fatal   : Unsupported gpu architecture 'compute_120a'", "CUDA 12.6", "vllm"),
    ("SG-G019", "hip_code_object.cpp:486: \"hipErrorNoBinaryForGpu: Unable to find code object for all current "
     "devices!\"", "ROCm/ROCm issue 2061", "vllm"),
    ("SG-G021", "ValueError: No valid attention backend found for cuda with AttentionSelectorConfig(head_size=576, "
     "dtype=torch.bfloat16, kv_cache_dtype=auto). Reasons: {FLASH_ATTN: [head_size not supported]}.",
     "vLLM, platforms/cuda.py", "vllm"),
    ("SG-G021", "ValueError: type fp8e4nv not supported in this architecture. The supported fp8 dtypes are "
     "('fp8e4b15', "
     "'fp8e5')", "Triton 3", "vllm"),
    ("SG-G021", "RuntimeError: FlashAttention only supports Ampere GPUs or newer.", "flash-attn 2", "vllm"),
    ("SG-G023", "/bin/sh: 1: nvcc: not found", "dash", "vllm"),
    ("SG-G023", "OSError: CUDA_HOME environment variable is not set. Please set it to your CUDA install root.",
     "torch 2.13, utils/cpp_extension.py", "vllm"),
    ("SG-G023", "RuntimeError: The detected CUDA version (12.4) mismatches the version that was used to compile "
     "PyTorch (13.0). Please make sure to use the same CUDA versions.", "torch 2.13, utils/cpp_extension.py", "vllm"),
    ("SG-G023", "RuntimeError: Ninja is required to load C++ extensions (pip install ninja to get it)",
     "torch 2.13, utils/cpp_extension.py", "vllm"),
    ("SG-G023", "FileNotFoundError: [Errno 2] No such file or directory: 'ninja'", "Python 3.12, subprocess.py",
     "vllm"),
    ("SG-G023", "RuntimeError: Failed to find C compiler. Please specify via CC environment variable or set "
     "triton.knobs.build.impl.", "Triton 3.6, runtime/build.py", "vllm"),
    ("SG-G003", "E1130 03:33:00.000000       1 main.go:132] Failed to initialize NVML: could not load NVML library: "
     "libnvidia-ml.so.1: cannot open shared object file: No such file or directory", "NVIDIA/k8s-device-plugin issue "
     "1431 (2025-09)", ""),
    ("SG-K015", "  Normal   Killing    3m1s (x2 over 23m)  kubelet  Container vllm failed startup probe, will be "
     "restarted", "Kubernetes 1.33, pkg/kubelet/kuberuntime", "vllm"),
    ("SG-K015", '  Warning  Unhealthy  6s (x30 over 5m)  kubelet  Startup probe failed: Get "http://10.244.0.7:8000/'
     'health": dial tcp 10.244.0.7:8000: connect: connection refused', "Kubernetes 1.33, pkg/kubelet/prober", "vllm"),
    ("SG-K015", "  Warning  Unhealthy  6s (x30 over 5m)  kubelet  Startup probe failed: HTTP probe failed with "
     "statuscode: 404", "Kubernetes 1.33, pkg/kubelet/prober", "vllm"),
    ("SG-C015", "(autoscaler +2m10s) Error: No available node types can fulfill resource request {'GPU': 8.0, 'CPU': "
     "8.0}. Add suitable node types to this cluster to resolve this issue.",
     "Ray, autoscaler/_private/autoscaler.py", "vllm"),
    ("SG-C015", "(autoscaler +2m10s) Error: No available node types can fulfill resource request {'GPU': 1.0, "
     "'node:10.0.0.5': 0.001}. Add suitable node types to this cluster to resolve this issue.",
     "Ray, autoscaler/_private/autoscaler.py", "vllm"),
    ("SG-C016", "stackgen: no connection to the first machine (10.0.0.5 port 29500) for 20 s: ending this rank, which "
     "can't compute without it", "templates/engines/group_node.py", "vllm"),
    ("SG-C016", "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer "
     "[10.0.0.6]:22676", "gloo, transport/tcp/pair.cc", "vllm"),
    ("SG-M009", "The size of /dev/shm is too small (67108864 bytes). The required size at least half of RAM (9 bytes).",
     "Modin, core/execution/ray/common/utils.py", "vllm"),
    ("SG-M009", "RuntimeError: Not enough space in /dev/shm! Need 21.40 GB, have 0.07 GB",
     "public scripts that copy data to /dev/shm", "vllm"),
    ("SG-F011", "requests.exceptions.MissingSchema: Invalid URL 'vllm-one:8000/v1/models': No scheme supplied. Perhaps "
     "you meant https://vllm-one:8000/v1/models?", "requests 2, models.py", "vllm"),
    ("SG-A014", "llama_init_from_model: quantized V cache requires flash_attn to be enabled",
     "llama.cpp, src/llama-context.cpp", "llamacpp"),
    ("SG-L011", 'ts=2023-03-30T16:54:25.711Z caller=main.go:468 level=error msg="Error loading config" err="open '
     '/etc/prometheus/prometheus.yml: permission denied"', "docker/awesome-compose issue 342 (2023-03)", ""),
    ("SG-L011", "GF_PATHS_DATA='/var/lib/grafana' is not writable.", "prahaladramji/synology-prometheus issue 1", ""),
    ("SG-D023", 'Error: OCI runtime error: crun: {"msg":"cannot set memory limit: container could not join or create '
     'cgroup","level":"error","time":"2026-10-22T10:04:55.559600Z"}', "crun 1.29, form of ublue-os/bluefin issue "
     "3454", ""),
    ("SG-C014", "node-1:83:83 [0] misc/ibvwrap.cc:182 NCCL WARN Call to ibv_reg_mr_iova2 failed with error Invalid "
     "argument", "NVIDIA/nccl issue 1842 (2025-09)", "vllm"),
    ("SG-G024", "Memory access fault by GPU node-2 (Agent handle: 0x5640a8bb1980) on address 0x7feea09c5000. Reason: "
     "Page not present or supervisor privilege.", "ROCR runtime", "vllm"),
    ("SG-G025", "RuntimeError: No HIP GPUs are available", "torch for ROCm", "vllm"),
    ("SG-G025", "ggml_cuda_init: failed to initialize ROCm5: no ROCm-capable device is detected", "HIP error 100",
     "llamacpp"),
    ("SG-G026", "Error: setting up CDI devices: failed to inject devices: failed to stat CDI host device "
     "\"/dev/dri/renderD129\": no such file or directory", "NVIDIA/nvidia-container-toolkit issue 885", ""),
    ("SG-G026", DAEMON + "failed to create shim task: error mounting \"/usr/lib64/libnvidia-ml.so.550.135\" to "
     "rootfs at "
     "\"/usr/lib64/libnvidia-ml.so.550.135\": no such file or directory", "runc 1.3", ""),
    ("SG-G029", "pynvml.NVMLError_NoPermission: Insufficient Permissions", "nvidia-ml-py", "vllm"),
    ("SG-G030", "torch.AcceleratorError: CUDA error: system not yet initialized", "CUDA error 802", "vllm"),
    ("SG-G030", "Search for `cudaErrorSystemNotReady' in the documentation", "torch 2.9", "vllm"),
    ("SG-G031", CLI + "mount error: failed to add device rules: unable to find any existing device filters attached "
     "to the "
     "cgroup: bpf_prog_query(BPF_CGROUP_DEVICE) failed: operation not permitted: unknown",
     "NVIDIA/nvidia-container-toolkit issue 139", ""),
    ("SG-G031", CLI + "mount error: open failed: /sys/fs/cgroup/devices/user.slice/devices.allow: permission denied",
     "moby/moby issue 38729", ""),
    ("SG-G032", "Unable to open /dev/kfd read-write: Permission denied", "ROCm/ROCm issues", "llamacpp"),
    ("SG-G034", "torch.AcceleratorError: CUDA error: an illegal memory access was encountered", "CUDA error "
     "700", "vllm"),
    ("SG-G035", "RuntimeError: CUDA error: CUDA-capable device(s) is/are busy or unavailable", "CUDA error 46", "vllm"),
    ("SG-G013", CLI + "initialization error: nvml error: unable to load the nvml library: unknown",
     "libnvidia-container", ""),
    ("SG-G039", "TimeoutError: RPC call to sample_tokens timed out.", "eugr/spark-vllm-docker issue 321", "vllm"),
    ("SG-V024", "pydantic ValidationError: Value error, Found unknown quantization",
     "vllm-project/vllm issue 34028", "vllm"),
    ("SG-G036", CLI + "initialization error: WSL environment detected but no adapters were found: unknown",
     "libnvidia-container", ""),
    ("SG-G037", CLI + "ldcache error: open failed: /sbin/ldconfig.real: no such file or directory: unknown",
     "libnvidia-container", ""),
    ("SG-G038", DAEMON + "failed to discover GPU vendor from CDI: no known GPU vendor found", "Docker engine 29", ""),
    ("SG-V006", "ValueError: ChatGLMForConditionalGeneration has no vLLM implementation and the Transformers "
     "implementation "
     "is not compatible with vLLM.", "vllm-project/vllm issue 16183", "vllm"),
    ("SG-V006", "ValueError: GGUF model with architecture qwen35 is not supported yet.", "transformers 4.57", "vllm"),
    ("SG-V022", "KeyError: 'model.layers.3.mlp.experts.w13_bias'", "vllm-project/vllm issue 40358", "vllm"),
    ("SG-V024", "NotImplementedError: No compressed-tensors compatible scheme was found.", "vLLM", "vllm"),
    ("SG-V024", "ValueError: Unknown quantization method: bitsandbytes. Must be one of ['awq', 'fp8'].",
     "vLLM", "vllm"),
    ("SG-V024", "ValueError: Invalid quantization method: mxfp8", "vLLM", "vllm"),
    ("SG-V026", "vllm serve: error: argument --speculative-config/-sc: invalid loads value: 'method:mtp'",
     "argparse of Python 3.12", "vllm"),
    ("SG-V027", "RuntimeError: CUDA error: operation failed due to a previous error during capture", "CUDA error 901",
     "vllm"),
    ("SG-V030", "openai_harmony.HarmonyError: invalid tiktoken vocab file: No such file or directory (os error 2)",
     "openai-harmony 0.0.8", "vllm"),
    ("SG-V033", "AttributeError: 'Qwen3VLConfig' object has no attribute 'vocab_size'", "Python 3.12", "vllm"),
    ("SG-V033", "AttributeError: Qwen2Tokenizer has no attribute all_special_tokens_extended", "transformers "
     "5", "vllm"),
    ("SG-V034", "ValueError: The model's max seq len (131072) is larger than the maximum number of tokens that can "
     "be stored "
     "in KV cache (93760). Try increasing `gpu_memory_utilization`", "vLLM 0.8", "vllm"),
    ("SG-A011", "ggml_vulkan: Device memory allocation of size 1056622080 failed.", "llama.cpp, "
     "ggml-vulkan.cpp", "llamacpp"),
    ("SG-A011", "llama_model_load: error loading model: unable to allocate ROCm0 buffer", "llama.cpp", "llamacpp"),
    ("SG-A021", "gguf_init_from_reader: tensor 'output.weight' has invalid ggml type 142. should be in [0, 43)",
     "llama.cpp, ggml/src/gguf.cpp", "llamacpp"),
    ("SG-A021", "llama_model_load: error loading model: check_tensor_dims: tensor 'blk.0.attn_q.weight' has wrong "
     "shape; "
     "expected 2048, 4096, got 2048, 2048", "llama.cpp, llama-model-loader.cpp", "llamacpp"),
    ("SG-A021", "llama_model_load: error loading model: done_getting_tensors: wrong number of tensors; expected 81, "
     "got 58",
     "llama.cpp, llama-model-loader.cpp", "llamacpp"),
    ("SG-A021", "llama_model_load: error loading model: error loading model vocabulary: unknown pre-tokenizer type: "
     "'minicpm5'", "llama.cpp, llama-vocab.cpp", "llamacpp"),
    ("SG-A021", "llama_model_load: error loading model: error loading model hyperparameters: key not found in model: "
     "qwen35.rope.dimension_sections", "llama.cpp, llama-model-loader.cpp", "llamacpp"),
    ("SG-A025", "llama_init_from_model: failed to initialize the context: failed to allocate compute pp buffers",
     "llama.cpp, llama-context.cpp", "llamacpp"),
    ("SG-H012", "requests.exceptions.SSLError: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed", "OpenSSL 3",
     "vllm"),
    ("SG-H012", "SSLError: unable to get local issuer certificate (_ssl.c:1010)", "OpenSSL 3", "vllm"),
    ("SG-H013", "requests.exceptions.ProxyError: HTTPSConnectionPool: (Caused by ProxyError('Unable to connect to "
     "proxy'))",
     "requests 2.32", "vllm"),
    ("SG-H013", "httpx.ConnectError: Failed to resolve 'huggingface.co'", "urllib3 2", "vllm"),
    ("SG-H013", "HTTPSConnectionPool(host='huggingface.co', port=443): Max retries exceeded (Caused by "
     "NewConnectionError('[Errno 101] Network is unreachable'))", "urllib3 2", "vllm"),
    ("SG-H015", "get_repo_files: error: GET failed (401): Invalid username or password.", "llama.cpp", "llamacpp"),
    ("SG-H016", "OSError: Consistency check failed: file should be of size 4227858712 but has size 2290365199 "
     "(model-00045-of-00061.safetensors).", "huggingface_hub 0.36", "vllm"),
    ("SG-H016", "urllib3.exceptions.IncompleteRead: IncompleteRead(1048576 bytes read, 4194304 more expected)",
     "urllib3 2", "vllm"),
    ("SG-H018", "huggingface_hub.errors.HfHubHTTPError: 403 Client Error: Forbidden for url: "
     "https://huggingface.co/api/models/acme/one\nOSError: We couldn't connect to 'https://huggingface.co' to load the "
     "files, and couldn't find them in the cached files.", "huggingface_hub 0.36, transformers 4.57", "vllm"),
    ("SG-G002", "RuntimeError: CUDA error: the provided PTX was compiled with an unsupported toolchain.",
     "CUDA error 222", "vllm"),
    ("SG-G004", "CUDA error: device kernel image is invalid", "CUDA error 200", "llamacpp"),
    ("SG-G022", "ImportError: /usr/local/lib/python3.12/dist-packages/vllm/_C.abi3.so: undefined symbol: "
     "_ZN3c10", "glibc",
     "vllm"),
    ("SG-G022", "RuntimeError: flashinfer-jit-cache version (0.5.2+cu130) does not match flashinfer version (0.5.3).",
     "FlashInfer 0.5", "vllm"),
    ("SG-G021", "ValueError: Selected backend AttentionBackendEnum.TRITON_ATTN is not valid for this configuration. "
     "Reason: ['kv_cache_dtype not supported']", "vLLM 0.32.0, platforms/cuda.py", "vllm"),
    ("SG-D031", "dependency failed to start: container a-db-1 has no healthcheck configured",
     "Compose 5, pkg/compose/convergence.go", ""),
    ("SG-G021", "ValueError: Selected backend FLASH_ATTN is not valid for this configuration. Reason: ['head_size']",
     "vLLM, platforms/cuda.py", "vllm"),
    ("SG-A026", "llama_model_load: error loading model: illegal split file idx: 1 (file: "
     "/models/x-00002-of-00003.gguf)",
     "llama.cpp, llama-model-loader.cpp", "llamacpp"),
    ("SG-A027", "common_speculative_are_compatible: draft model vocab type must match target model to use speculation",
     "llama.cpp, common/speculative.cpp", "llamacpp"),
    ("SG-L009", "OSError: [Errno 116] Stale file handle: '/models/x/model-00001.safetensors'", "Linux", "vllm"),
    ("SG-M017", "OSError: [Errno 12] Cannot allocate memory", "Linux", "vllm"),
    ("SG-D020", 'Error: short-name "vllm/vllm-openai:v0.32.0" did not resolve to an alias and no unqualified-search '
     'registries are defined in "/etc/containers/registries.conf"', "Podman 5", ""),
    ("SG-H017", "ValueError: Fast download using 'hf_transfer' is enabled (HF_HUB_ENABLE_HF_TRANSFER=1) but "
     "'hf_transfer' "
     "package is not available in your environment.", "huggingface_hub 0.36", "vllm"),
)  # fmt: skip

# (rule, line of a running server's log): requests that it refused
REFUSALS: tuple[tuple[str, str], ...] = (
    ("SG-A052", '{"error":{"code":500,"message":"Unknown method: plums at row 57, column 46:"}}'),
    ("SG-V069", "ERROR 02-25 10:00:00 [x.py:1] Error: Unknown (built-in) filter 'items' for type String"),
    ("SG-V069", "ERROR 02-25 10:00:00 [x.py:1] Value is not an array or object: null at row 22, column 40:"),
    ("SG-V069", "ERROR 02-25 10:00:00 [x.py:1] jinja2.exceptions.UndefinedError: 'dict object' has no attribute 'a'"),
    ("SG-V069", "ERROR 02-25 10:00:00 [x.py:1] TypeError: Can only get item pairs from a mapping."),
    ("SG-V017", "ERROR 08-01 10:12:09 [serving.py:1] ValueError: You passed 4100 input characters and requested 2000 "
     "output tokens. However, the model's context length is only 2048 tokens, resulting in a maximum input length."),
    ("SG-V017", "ERROR 08-01 10:12:09 [serving.py:1] ValueError: This model's maximum context length is 4096 tokens. "
     "However, you requested 5000 tokens (3000 in the messages, 2000 in the completion). Please reduce the length."),
    ("SG-V063", "ERROR 04-09 05:47:15 [serving.py:1262] ValueError: The provided JSON schema contains features not "
     "supported by xgrammar."),
    ("SG-V053", "ERROR 08-09 09:58:19 [scheduler.py:1841] Unexpected: grammar rejected tokens [200028] for request "
     "chatcmpl-8da6. Terminating request."),
    ("SG-V054", "ERROR 08-09 09:58:19 [serving.py:175] RuntimeError: Cannot load local files without "
     "`--allowed-local-media-path`."),
    ("SG-V052", "ERROR 02-07 10:00:00 [serving_chat.py:300] ValueError: The decoder prompt contains a(n) video item "
     "with 21504 embedding tokens, which exceeds the pre-allocated encoder cache size 16384. Please reduce the input "
     "size or increase the encoder cache size by setting --limit-mm-per-prompt at startup."),
    ("SG-V017", "ERROR 08-01 10:12:09 [x.py:1] ValueError: The decoder prompt (length 8825) is longer than the "
     "maximum model "
     "length of 8192."),
    ("SG-V017", 'got exception: {"error":{"code":400,"message":"the request exceeds the available context size, try '
     'increasing it","type":"exceed_context_size_error"}}'),
    ("SG-A028", 'got exception: {"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}'),
    ("SG-V031", "ERROR 08-01 10:12:09 [x.py:1] jinja2.exceptions.TemplateError: Conversation roles must alternate "
     "user/assistant/user/assistant/..."),
    ("SG-V031", "ERROR 08-01 10:12:09 [x.py:1] ValueError: Unexpected role 'user' after role 'tool'"),
    ("SG-V031", "ERROR 08-01 10:12:09 [x.py:1] ValueError: Unexpected role 'system' after role 'assistant'"),
    ("SG-V031", "ERROR 08-01 10:12:09 [x.py:1] ValueError: Expected last role User or Tool (or Assistant with prefix "
     "True) for serving but got assistant"),
    ("SG-V032", "ERROR 08-01 10:12:09 [x.py:1] ValueError: At most 0 image(s) may be provided in one prompt."),
    ("SG-V032", "ERROR 08-01 10:12:09 [x.py:1] ValueError: At most 1 image(s) may be provided in one request."),
    ("SG-V032", "ERROR 08-01 1:2:9 [x.py:1] You set '' in `--limit-mm-per-prompt`, but found 3 items in the same "
     "prompt"),
    ("SG-V032", "ERROR 08-01 10:12:09 [x.py:1] ValueError: acme/one is not a multimodal model"),
    ("SG-X009", "[2026-11-29 12:03:30] ValueError: The input (9000 tokens) is longer than the model's context length "
     "(8192 tokens)."),
)  # fmt: skip

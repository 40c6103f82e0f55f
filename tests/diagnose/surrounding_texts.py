"""Further examples of programs around the engines: databases, monitoring, Helm, clients and proxies."""

from __future__ import annotations

from tests.diagnose.texts import CLI, DAEMON

RUNC = DAEMON + "failed to create task for container: OCI runtime create failed: runc create failed: unable to start "
MOUNT = RUNC + "container process: error during container init: failed to fulfil mount request: open "
MIME = "aiohttp.client_exceptions.ContentTypeError: {}, message='Attempt to decode JSON with unexpected mimetype: {}', "

EXAMPLES: tuple[tuple[str, str, str, str], ...] = (
    ("SG-D006", MOUNT + "/mnt/media/library: no such file or directory", "runc 1.3, libcontainer/process_linux.go", ""),
    ("SG-D006", MOUNT + "/srv/a/.git/objects: not a directory", "runc 1.3, libcontainer/process_linux.go", ""),
    ("SG-G026", MOUNT + "/run/nvidia-persistenced/socket: no such file or directory",
     "runc 1.3, libcontainer/process_linux.go", ""),
    ("SG-D041", "RuntimeError: The Client hasn't been generated yet, you must run `prisma generate` before you can use "
     "the client.", "prisma-client-py 0.15, prisma/__init__.py", "vllm"),
    ("SG-C043", 'Error scraping target: non-compliant scrape target sending blank Content-Type and no '
     "fallback_scrape_protocol specified for target", "Prometheus 3, scrape/scrape.go", "vllm"),
    ("SG-D042", "Error: ✗ Datasource provisioning error: read /etc/grafana/provisioning/datasources/a.yaml: is a "
     "directory", "Grafana 12, bassmaster187/TeslaLogger issue 1067 (2023-06)", "vllm"),
    ("SG-D042", "Error: ✗ Datasource provisioning error: datasource.yaml config is invalid. Only one datasource per "
     "organization can be marked as default", "Grafana 12, "
     "pkg/services/provisioning/datasources/config_reader.go", "vllm"),
    ("SG-D042", "Error: ✗ Datasource provisioning error: yaml: line 4: did not find expected key", "Grafana 12, "
     "pkg/services/provisioning/datasources/config_reader.go", "vllm"),
    ("SG-D043", 'time="2025-01-22T06:46:54Z" level=fatal msg="Failed to watch metrics: Error watching fields: The '
     'third-party Profiling module returned an unrecoverable error"', "Project-HAMi/HAMi-WebUI issue 20 (2025-01)",
     "vllm"),
    ("SG-K032", 'Error: INSTALLATION FAILED: chart "vllm-stack" version "9.9.9" not found in vllm index. (try '
     "'helm repo update'): no chart version found for vllm-stack-9.9.9", "Helm 3, pkg/repo/index.go", ""),
    ("SG-K033", "Message:  No runtime found to support specified framework/version", "kserve/kserve issue 5035 "
     "(2026-02)", ""),
    ("SG-C045", MIME.format(200, "text/html; charset=utf-8") + "url='http://10.0.0.5/v1/models'",
     "aiohttp 3.13, client_reqrep.py", "vllm"),
    ("SG-C045", MIME.format(404, "text/plain") + "url='http://10.0.0.5:8000/chat/completions'",
     "aiohttp 3.13, client_reqrep.py", "vllm"),
    ("SG-C045", MIME.format(403, "text/html") + "url='http://10.0.0.5:8000/v1/models'",
     "aiohttp 3.13, client_reqrep.py", "vllm"),
    ("SG-C045", MIME.format(503, "") + "url='http://127.0.0.1:10000/chat/completions'",
     "open-webui/open-webui issue 9419 (2025-02)", "vllm"),
    ("SG-C046", "openai.BadRequestError: Error code: 400 - {'object': 'error', 'message': \"[{'type': "
     "'extra_forbidden', 'loc': ('body', 'stream_options'), 'msg': 'Extra inputs are not permitted'}]\"}",
     "modelscope/ms-agent issue 489 (2024-06)", "vllm"),
    ("SG-C046", "openai.BadRequestError: Error code: 400 - {'error': {'message': 'Unrecognized request argument "
     "supplied: reasoning_effort', 'type': 'invalid_request_error'}}", "openai 2, _exceptions.py", "vllm"),
    ("SG-C047", "litellm.types.router.RouterRateLimitErrorBasic: No deployments available for selected model.",
     "BerriAI/litellm issue 20867 (2026-02)", "vllm"),
    ("SG-G061", 'time="2025-10-30T07:33:20Z" level=fatal msg="Error applying MIG configuration with hooks: unable to '
     'apply MIG config with MIG mode disabled"', "NVIDIA/gpu-operator issue 1845 (2025-10)", ""),
    ("SG-G061", "Unable to enable MIG Mode for GPU 00000000:3B:00.0: In use by another client", "nvidia-smi 570", ""),
    ("SG-D044", "Error: netavark: error while applying dns entries: IO error: aardvark-dns failed to start: Error from "
     "child process Error starting server failed to bind udp listener on 10.89.0.1:53: IO error: Address already in "
     "use (os error 98)", "aardvark-dns 1.14, src/server/serve.rs", ""),
    ("SG-D044", "Error starting server failed to get upstream nameservers, dns forwarding will not work: "
     "fe80::1%enp5s0: parse address: invalid IP address syntax", "containers/aardvark-dns issue 535 (2024-11)", ""),
    ("SG-K035", 'Error: failed to generate container "30597" spec: failed to generate spec: lstat /dev/nvidia-uvm: no '
     "such file or directory", "containerd 2, pkg/oci/utils_unix.go", "vllm"),
    ("SG-K036", "Reason: ProgressDeadlineExceeded", "Kubernetes 1.33, pkg/controller/deployment", "vllm"),
    ("SG-C050", "2026/05/01 10:11:12 [error] 9#9: *5 SSL_do_handshake() failed (SSL: error:0A00010B:SSL "
     "routines::wrong version number) while SSL handshaking to upstream, client: 10.0.0.3", "nginx 1.27, "
     "ngx_event_openssl.c", "vllm"),
    ("SG-C050", "Post \"https://10.0.0.5:8000/v1/chat/completions\": http: server gave HTTP response to HTTPS client",
     "Go 1.24, net/http/client.go", "vllm"),
    ("SG-D002", DAEMON + 'Get "https://registry.lan:5000/v2/": http: server gave HTTP response to HTTPS client',
     "moby 28, Go's net/http/client.go", ""),
    ("SG-D002", 'failed to resolve reference "registry.lan:5000/a:1": failed to do request: Head '
     '"https://registry.lan:5000/v2/a/manifests/1": http: server gave HTTP response to HTTPS client',
     "containerd 2, core/remotes/docker", ""),
    ("SG-K035", 'Error: failed to generate container "30597" spec: failed to generate spec: lstat '
     "/dev/infiniband/uverbs12: no such file or directory", "containerd 2, pkg/oci/utils_unix.go", "vllm"),
    ("SG-K036", 'error: deployment "vllm" exceeded its progress deadline', "kubectl 1.33, "
     "pkg/polymorphichelpers/rollout_status.go", "vllm"),
    ("SG-G062", "modprobe: ERROR: could not insert 'nvidia': Key was rejected by service", "kmod 31, "
     "NVIDIA/gpu-driver-container issue 44 (2024-06)", ""),
    ("SG-G062", "[   12.034981] Loading of unsigned module is rejected", "Linux 6.8, kernel/module/signing.c", ""),
    ("SG-G062", "kern:  notice: [2023-05-04T07:37:25.957686413Z]: Loading of module with unavailable key is rejected",
     "siderolabs/talos issue 7174 (2023-05)", ""),
    ("SG-G062", 'user: warning: [talos] controller failed {"error": "error loading module \\"nvidia\\": load nvidia '
     'failed: key was rejected by service"}', "siderolabs/talos issue 7174 (2023-05)", ""),
    ("SG-G063", "libascend_hal.so: cannot open shared object file: No such file or directory",
     "vllm-project/vllm-ascend issue 1440 (2025-06)", ""),
    ("SG-K037", "HTTP/1.1 500 Internal Server Error: response_code_details ext_proc_error_gRPC_error_14{connection_"
     "termination}", "Envoy 1.34, higress-group/higress issue 3701 (2026-04)", "vllm"),
    # the fifteenth exam
    ("SG-M002", "ValueError: Free memory on device (31.44/47.38 GiB) on startup is less than desired GPU memory "
     "utilization (0.95, 45.01 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.",
     "vLLM 0.9, v1/worker/gpu_worker.py", "vllm"),
    ("SG-M002", "ValueError: Free memory on device 0(3.11/23.69 GiB) on startup is less than desired GPU memory "
     "utilization (0.92, 21.79 GiB).", "a fork of vLLM, v1/worker/gpu_worker.py", "vllm"),
    ("SG-M014", "ValueError: Free memory on device (30.5/119.7 GiB) on startup is less than desired GPU memory "
     "utilization (0.9, 107.73 GiB).", "vLLM 0.9, v1/worker/gpu_worker.py", "vllm"),
    ("SG-G020", 'File "/opt/vllm/model_executor/layers/fused_moe/fused_moe.py", line 1485, in fused_experts_impl'
     "\ntriton.runtime.errors.OutOfResources: out of resource: shared memory, Required: 263168, Hardware limit: "
     "232448. Reducing block sizes or `num_stages` may help.", "QwenLM/Qwen3-Coder issue 461 (2025-07)", "vllm"),
    ("SG-G065", "AttributeError: '_OpNamespace' '_moe_C' object has no attribute 'topk_softmax'",
     "torch 2.9, _ops.py", "vllm"),
    ("SG-V067", "TypeError: Expected an MLIR object (got <cutlass._mlir._mlir_libs._cutlass_ir._mlir.ir.OpResultList "
     "object at 0x7f1>).", "LLVM 22, NanobindAdaptors.h", "vllm"),
    ("SG-G064", "ImportError: /usr/lib/x86_64-linux-gnu/libcuda.so.1: file too short", "glibc 2.39, elf/dl-load.c",
     "llamacpp"),
    ("SG-A043", "Failed to generate a response: error response: status=500 body=unable to load runner: error waiting "
     "for runner to be ready: failed to get args for llama.cpp: GGUF file required by llama.cpp backend",
     "Docker Model Runner, pkg/inference/backends/llamacpp/llamacpp_config.go", ""),
    ("SG-L015", "huggingface_hub.errors.CacheNotFound: Cache directory not found: /data/.cache/huggingface. Please use "
     "`cache_dir` argument or set `HF_HUB_CACHE` environment variable.", "huggingface_hub 0.36, "
     "utils/_cache_manager.py", "vllm"),
    ("SG-H018", "requests.exceptions.HTTPError: 401 Client Error: Unauthorized for url: "
     "https://huggingface.co/acme/one/resolve/main/config.json", "requests, models.py", "vllm"),
    ("SG-H018", "httpx.HTTPStatusError: Client error '401 Unauthorized' for url "
     "'https://huggingface.co/api/models/acme/one/revision/main'", "httpx, _models.py", "vllm"),
    ("SG-H018", "requests.exceptions.HTTPError: 404 Client Error: Not Found for url: "
     "https://huggingface.co/acme/one/resolve/main/config.json", "requests, models.py", "vllm"),
    ("SG-H018", "httpx.HTTPStatusError: Client error '404 Not Found' for url "
     "'https://huggingface.co/api/models/acme/one/revision/v9'", "httpx, _models.py", "vllm"),
    # the sixteenth exam
    ("SG-G067", "\t10 | AMDSMI_STATUS_NO_PERM - Permission Denied", "amdsmi 26, amdsmi_exception.py", "vllm"),
    ("SG-G068", "nvidia-container-cli: initialization error: driver rpc error: timed out: unknown",
     "NVIDIA/nvidia-docker issue 1691 (2022-10)", ""),
    ("SG-M008", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.19 GiB. GPU 0 has a total capacity of "
     "23.69 GiB of which 193.25 MiB is free. Including non-PyTorch memory, this process has 14.90 GiB memory in use. "
     "Process 4242 has 8.60 GiB memory in use. Of the allocated memory 14.10 GiB is allocated by PyTorch",
     "torch 2.9, c10/cuda/CUDACachingAllocator.cpp", "vllm"),
    ("SG-A011", "CUDA error: out of memory\n  current device: 0, in function alloc at ggml-cuda.cu:503\n  "
     "cuMemCreate(&handle, reserve_size, &prop, 0)", "llama.cpp, ggml/src/ggml-cuda/ggml-cuda.cu", "llamacpp"),
    ("SG-V040", 'File "/usr/lib/python3.12/site-packages/pydantic/v1/typing.py", line 64, in evaluate_forwardref\n'
     "TypeError: ForwardRef._evaluate() missing 1 required keyword-only argument: 'recursive_guard'",
     "nagaraj-real/localaipilot-api issue 8 (2025-01)", "vllm"),
    # the seventeenth exam
    ("SG-C039", "openai.NotFoundError: 404 page not found", "openai 2, Go net/http", "vllm"),
    ("SG-V070", "ValueError: No tokenizer registered for tokenizer_mode='deepseek_v9'.", "vLLM 0.12, "
     "tokenizers/registry.py", "vllm"),
    ("SG-G003", "/app/llama-server: error while loading shared libraries: libcuda.so.1: cannot open shared object "
     "file: No such file or directory", "glibc 2.39, elf/dl-load.c", "llamacpp"),
    # the eighteenth exam
    ("SG-K038", "Error: unable to load config: unsupported config version: 3\nerror running nvidia-toolkit: unable to "
     "setup runtime", "NVIDIA/gpu-operator issue 2060 (2026-01)", "vllm"),
    ("SG-V040", "RuntimeError: Failed to import plum because of the following error:\n"
     "'FieldInfo' object has no attribute 'required'", "pydantic 2, transformers", "vllm"),
    # around the engines
    ("SG-C059", "openai.APITimeoutError: Request timed out.", "OpenAI SDK 2, _exceptions.py", "vllm"),
    ("SG-C059", "litellm.Timeout: APITimeoutError - Request timed out. Error_str: Request timed out.",
     "LiteLLM 1, exceptions.py", "vllm"),
    ("SG-C061", "error: 400 status code (no body) Error: 400 status code (no body)", "OpenAI SDK for JavaScript, "
     "error.ts", "vllm"),
    ("SG-C060", "openai.AuthenticationError: Error code: 401 - {'error': 'Unauthorized'}",
     "vLLM, entrypoints/openai/server_utils.py", "vllm"),
    ("SG-C060", "openai.AuthenticationError: Error code: 401 - {'error': {'message': 'Invalid API Key', 'type': "
     "'authentication_error', 'code': 401}}", "llama.cpp, tools/server/server-http.cpp", "llamacpp"),
    ("SG-C060", "openai.AuthenticationError: Error code: 401 - {'error': {'message': 'Incorrect API key provided: "
     "EMPTY. You can find your API key at https://platform.openai.com/account/api-keys.', 'type': "
     "'invalid_request_error', 'param': None, 'code': 'invalid_api_key'}}", "OpenAI's API", "vllm"),
    ("SG-C051", "openai.UnprocessableEntityError: Error code: 422 - {'detail': [{'type': 'missing', 'loc': ['body', "
     "'messages'], 'msg': 'Field required', 'input': {}}]}", "pydantic-core 2, errors/types.rs", "sglang"),
    ("SG-C051", "openai.BadRequestError: Error code: 400 - {'object': 'error', 'message': \"[{'type': 'int_parsing', "
     "'loc': ('body', 'max_tokens'), 'msg': 'Input should be a valid integer, unable to parse string', 'input': "
     "'plum'}]\", 'code': 400}", "pydantic-core 2, errors/types.rs", "vllm"),
    ("SG-C051", "Failed to deserialize the JSON body into the target type: messages[0].role: unknown variant "
     "`developer`, expected one of `system`, `user` at line 1 column 30", "axum 0.8, json.rs", "sglang"),
    ("SG-C053", "SyntaxError: Unexpected token '<', \"<!DOCTYPE \"... is not valid JSON", "V8, JSON.parse", "vllm"),
    ("SG-C053", "SyntaxError: Unexpected token 'I', \"Internal S\"... is not valid JSON", "V8, JSON.parse", "vllm"),
    ("SG-C054", "TypeError: AsyncCompletions.create() got an unexpected keyword argument 'guided_json'",
     "OpenAI SDK 2, resources/chat/completions/completions.py", "vllm"),
    ("SG-C057", "Error: Failed to connect to NATS: connection refused. Verify NATS server is running and accessible.",
     "Dynamo 0.9, lib/runtime/src/transports/nats.rs", "vllm"),
    ("SG-G069", CLI + "mount error: stat failed: /dev/nvidia-modeset: no such file or directory: unknown",
     "libnvidia-container 1.17, src/nvc_mount.c", ""),
    ("SG-G069", CLI + "mount error: file creation failed: /srv/rootfs/usr/lib/x86_64-linux-gnu/libcuda.so.1: file "
     "exists: unknown", "libnvidia-container 1.17, src/utils.c", ""),
    ("SG-G069", CLI + "container error: cgroup subsystem devices not found: unknown",
     "libnvidia-container 1.4, src/cgroup.c", ""),
    ("SG-C025", "ValueError: Cannot provide a placement group of placement_group_specs=[{'GPU': 1.0}] within 1800 "
     "seconds. See `ray status` to make sure the cluster has enough resources.", "vLLM, v1/executor/ray_utils.py",
     "vllm"),
    # as a log of JSON shows the message, on one line
    ("SG-V024", "pydantic_core._pydantic_core.ValidationError: 1 validation error for VllmConfig block_structure Input "
     "should be a valid string [type=string_type, input_value=[128, 128], input_type=list]",
     "compressed-tensors, quantization/quant_args.py", "vllm"),
    # engines and models
    ("SG-V076", "ModuleNotFoundError: No module named 'transformers_modules.Plum-VL-2'",
     "transformers 4.56, dynamic_module_utils.py", "vllm"),
    ("SG-V076", "ModuleNotFoundError: No module named 'transformers_modules'", "vLLM issue 4169", "vllm"),
    ("SG-V077", 'File "/root/.cache/huggingface/modules/transformers_modules/plum/a.py", line 9, in <module>\n'
     "ImportError: cannot import name 'LlamaFlashAttention2' from 'transformers.models.llama.modeling_llama'",
     "Python 3.12, transformers 4.57", "vllm"),
    ("SG-V078", "RuntimeError: Unknown model (mobilenetv9_300m_enc)", "timm 0.9.10, models/_factory.py", "vllm"),
    ("SG-V079", "TypeError: Received a PlumImageProcessorFast for argument image_processor, but a PlumImageProcessor "
     "was expected.", "transformers 4.57, processing_utils.py", "vllm"),
    ("SG-V080", 'File "/usr/lib/python3.12/site-packages/transformers/models/auto/configuration_auto.py", line 1048, '
     "in __getitem__\nraise KeyError(key)\nKeyError: 'plum4'", "transformers 4.57, models/auto/configuration_auto.py",
     "sglang"),
    ("SG-V024", "RuntimeError: Unsupported FusedMoe scheme", "SGLang 0.5.23, layers/quantization/quark/quark.py",
     "sglang"),
    ("SG-V024", "ValueError: For FP8 Fused MoE layers, only per-tensor scales for weights and activations are supported"
     ". Found per_channel, per_token", "vLLM 0.16, quantization/quark/quark_moe.py", "vllm"),
    ("SG-G018", "subprocess.CalledProcessError: Command '/usr/lib/python3.12/site-packages/triton/backends/nvidia/bin/"
     "ptxas -lineinfo -v --gpu-name=sm_120 /tmp/a.ptx -o /tmp/a.ptx.o 2> /tmp/a.log' returned non-zero exit status 255",
     "Triton 3, backends/nvidia/compiler.py", "vllm"),
    ("SG-G023", "torch._inductor.exc.InductorError: FileNotFoundError: [Errno 2] No such file or directory: 'g++'",
     "Python 3.12, torch 2.9", "vllm"),
    ("SG-A053", "/build/ggml/src/ggml-backend-meta.cpp:1015: GGML_ASSERT(split_state.plums == 1) failed",
     "llama.cpp b10333, ggml/src/ggml-backend-meta.cpp", "llamacpp"),
    ("SG-A053", "/build/ggml/src/ggml-cuda/ggml-cuda.cu:2200: GGML_ASSERT(!(split && ne02 < ne12)) failed",
     "llama.cpp b8895, ggml/src/ggml-cuda/ggml-cuda.cu", "llamacpp"),
    ("SG-A054", "/build/ggml/src/ggml-cpu/ops.cpp:4500: GGML_ASSERT(i01 >= 0 && i01 < ne01) failed",
     "llama.cpp, ggml/src/ggml-cpu/ops.cpp", "llamacpp"),
    ("SG-M001", "(EngineCore_0 pid=5839) INFO 08-20 18:04:22 [gpu_worker.py:276] Available KV cache memory: -2.14 GiB",
     "vLLM, v1/worker/gpu_worker.py", "vllm"),
)  # fmt: skip

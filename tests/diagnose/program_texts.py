"""Further examples in the words of the programs' own source, or of a public report, like those in texts.py."""

from __future__ import annotations

from tests.diagnose.texts import CLI, DAEMON, HOOK

EXAMPLES: tuple[tuple[str, str, str, str], ...] = (
    # Docker, Compose, Podman
    ("SG-D003", "exec /app/start.sh: exec format error", "Linux, ENOEXEC, for a script without an interpreter", ""),
    ("SG-D026", "OSError: No username set in the environment", "Python 3.13, getpass.py", "vllm"),
    ("SG-D026", "RuntimeError: Could not determine home directory.", "Python 3.12, pathlib.py", "vllm"),
    ("SG-D026", DAEMON + "unable to find user svc: no matching entries in passwd file", "moby 28, daemon/oci_linux.go",
     ""),
    ("SG-D026", "whoami: cannot find name for user ID 1042", "coreutils 9, whoami.c", "vllm"),
    ("SG-D027", "fatal error: the cpu feature AVX was required at build time but isn't available on this system",
     "mozilla-ai/llamafile issue 488", "llamacpp"),
    ("SG-D027", "Fatal glibc error: CPU does not support x86-64-v2", "glibc 2.34, sysdeps/x86/cpu-features.c", "vllm"),
    ("SG-D027", "RuntimeError: NumPy was built with baseline optimizations: (X86_V2) but your machine doesn't support: "
     "(X86_V2).", "NumPy 2, npy_cpu_features.c", "vllm"),
    ("SG-D028", DAEMON + "failed to create task for container: OCI runtime create failed: runc create failed: unable "
     "to "
     'start container process: error during container init: exec: "--model": executable file not found in $PATH',
     "runc 1.3, libcontainer", ""),
    ("SG-G002", CLI + "requirement error: unsatisfied condition: brand = tesla: unknown",
     "NVIDIA container toolkit, internal/requirements", ""),
    ("SG-A029", "error: built without CURL, cannot download model from internet", "llama.cpp, common/download.cpp",
     "llamacpp"),
    ("SG-D025", DAEMON + "client version 1.52 is too new. Maximum supported API version is 1.43",
     "moby 24, api/server/middleware/version.go", ""),
    ("SG-G044", HOOK + "Auto-detected mode as 'csv'\ninvoking the NVIDIA Container Runtime Hook directly (e.g. "
     "specifying "
     "the docker --gpus flag) is not supported. Please use the NVIDIA Container Runtime instead.: unknown",
     "NVIDIA container toolkit, cmd/nvidia-container-runtime-hook/hook_config.go", ""),
    ("SG-G044", HOOK + "Using requested mode 'cdi' invoking the NVIDIA Container Runtime Hook directly (e.g. "
     "specifying "
     "the docker --gpus flag) is not supported. Please use the NVIDIA Container Runtime instead.: unknown",
     "NVIDIA container toolkit, cmd/nvidia-container-runtime-hook/hook_config.go", ""),
    ("SG-G044", HOOK + "Auto-detected mode as 'csv' invoking the NVIDIA Container Runtime Hook directly is not "
     "supported.",
     "NVIDIA container toolkit, cmd/nvidia-container-runtime-hook/hook_config.go", ""),
    ("SG-G045", "AssertionError: V1 CPU offloading requires uva (pin memory) support",
     "vLLM 0.11, model_executor/models/utils.py", "vllm"),
    ("SG-A040", "common_download_file_single: required file is not available in cache (offline mode): /models/a.gguf",
     "llama.cpp 11434, common/download.cpp", "llamacpp"),
    ("SG-C038", "stream error: read SSE stream: unexpected EOF", "defilantech/LLMKube issue 734 (2026-06)", "vllm"),
    ("SG-C038", "aiohttp.client_exceptions.ClientPayloadError: Response payload is not completed: "
     "<TransferEncodingError: 400, message='Not enough data to satisfy transfer length header.'>",
     "aiohttp 3.13, http_parser.py", "vllm"),
    ("SG-C039", "openai.NotFoundError: Error code: 404 - {'detail': 'Not Found'}", "openai 2, starlette 0.47", "vllm"),
    ("SG-C039", "openai.NotFoundError: Error code: 404 - {'error': {'code': 404, 'message': 'File Not Found', 'type': "
     "'not_found_error'}}", "openai 2, llama.cpp, tools/server/server-http.cpp", "llamacpp"),
    ("SG-L008", "PermissionError: [Errno 13] Permission denied: '/models/a/config.json'", "Python 3.12", "vllm"),
    ("SG-A011", "cudaMalloc failed: out of memory", "llama.cpp, ggml/src/ggml-cuda/ggml-cuda.cu", "llamacpp"),
    ("SG-D016", "IsADirectoryError: [Errno 21] Is a directory: '/templates/chat.jinja'", "Python 3.12", "vllm"),
    ("SG-D018", 'Error: creating container storage: the container name "llm" is already in use by 9e0bb994. You have '
     "to remove that container to be able to reuse that name: that name is already in use",
     "Podman 5, containers/storage/containers.go", ""),
    ("SG-D019", 'external volume "weights" not found', "Compose 5.5, pkg/compose/create.go", ""),
    ("SG-D020", "Error: short-name resolution enforced but cannot prompt without a TTY",
     "containers/podman-compose issue 331", ""),
    ("SG-D002", 'failed to resolve reference "ghcr.io/acme/a:1": unexpected status from HEAD request to '
     "https://ghcr.io/v2/acme/a/manifests/1: 429 Too Many Requests", "containerd 2.4, core/remotes/errors", ""),
    ("SG-D002", 'failed to resolve reference "ghcr.io/acme/a:1": failed to authorize: failed to fetch anonymous token: '
     "unexpected status from GET request to https://ghcr.io/token: 401 Unauthorized",
     "containerd 2.4, core/remotes/docker/authorizer.go", ""),
    ("SG-D005", "Cannot connect to Podman. Please verify your connection to the Linux system using `podman system "
     "connection list`, or try `podman machine init` and `podman machine start` to manage a new Linux VM",
     "Podman 5, cmd/podman/root.go", ""),
    ("SG-D007", "Error: crun: executable file `llama-server` not found in $PATH: No such file or directory: OCI "
     "runtime "
     "attempted to invoke a command that was not found", "crun 1.29, src/libcrun/utils.c", ""),
    # GPUs in Docker
    ("SG-G026", "Error: setting up CDI devices: failed to inject devices: failed to stat CDI host device "
     '"/dev/nvidia1": no such file or directory', "container-device-interface, container-edits_unix.go", ""),
    ("SG-G032", "Unable to open /dev/kfd read-write: No such file or directory", "ROCm/legacy-rocm-build issue 1798",
     "vllm"),
    ("SG-G032", "Unable to open /dev/kfd read-write: Invalid argument", "ROCm/legacy-rocm-build issue 6166", "vllm"),
    ("SG-G032", "Unable to open /dev/kfd read-write: Cannot allocate memory", "ROCm/rocminfo issue 41", "llamacpp"),
    ("SG-G032", DAEMON + 'error gathering device information while adding custom device "/dev/kfd": no such file or '
     "directory", "hydrian/stable-diffusion-webui-rocm issue 17", ""),
    ("SG-G038", "docker: " + DAEMON + "AMD CDI spec not found", "games-on-whales/wolf issue 386", ""),
    ("SG-G001", CLI.partition("stderr")[0] + 'exec: "nvidia-container-runtime-hook": executable file not found in '
     "$PATH: unknown", "moby 29.7, daemon/devices_nvidia_linux.go", ""),
    ("SG-G002", CLI + "requirement error: unsatisfied condition: cuda>=12.8, please update your driver to a newer "
     "version, or use an earlier cuda container: unknown", "toolkit 1.20, constraints/binary.go", ""),
    # GPUs in the engines
    ("SG-G030", "ggml_cuda_init: failed to initialize CUDA: system not yet initialized", "ollama/ollama issue 12136",
     "llamacpp"),
    ("SG-G030", "   [[ System not yet initialized (error 802) ]]", "NVIDIA/TensorRT-LLM issue 398", "vllm"),
    ("SG-G004", "torch.AcceleratorError: CUDA error: device kernel image is invalid", "libcudart 12.9, error 200",
     "vllm"),
    ("SG-G004", "ggml-cuda/fattn-mma-f16.cuh:1246: ERROR: CUDA kernel flash_attn_ext_f16 has no device code compatible "
     "with CUDA arch 750. ggml-cuda.cu was compiled for: 800", "LostRuins/koboldcpp issue 1579", "llamacpp"),
    ("SG-G004", "This kernel only supports sm[90, 100).", "CUTLASS, enable_sm90_to_sm100", "vllm"),
    ("SG-G018", "nvcc fatal   : Unsupported gpu architecture 'compute_70'", "CUDA 13.0, release notes", "vllm"),
    ("SG-G018", "ptxas fatal   : Value 'sm_70' is not defined for option 'gpu-name'", "CUDA 13.0, release notes",
     "vllm"),
    ("SG-G019", "RuntimeError: HIP error: device kernel image is invalid", "clr, hipamd/src/hip_error.cpp", "vllm"),
    ("SG-G019", "RuntimeError: HIP error: no kernel image is available for execution on the device",
     "clr, hipamd/src/hip_error.cpp", "vllm"),
    ("SG-G024", "Memory access fault by GPU node-1 (Agent handle: 0x5640a8bb1980) on address 0x7feea09c5000. Reason: "
     "DRAM ECC failure.", "ROCR runtime, runtime.cpp", "vllm"),
    ("SG-G034", "torch.AcceleratorError: CUDA error: device-side assert triggered", "libcudart 12.9, error 710",
     "vllm"),
    ("SG-G034", "RuntimeError: HIP error: uncorrectable ECC error encountered", "clr, hipamd/src/hip_error.cpp",
     "vllm"),
    ("SG-G034", "torch.AcceleratorError: CUDA error: the launch timed out and was terminated",
     "libcudart 12.9, error 702", "vllm"),
    ("SG-G034", "torch.AcceleratorError: CUDA error: hardware stack error", "libcudart 12.9, error 714", "vllm"),
    # memory, disks, network
    ("SG-M017", "RuntimeError: unable to mmap 16933256392 bytes from file </models/x/model.safetensors>: Cannot "
     "allocate memory (12)", "vllm-project/vllm issue 759", "vllm"),
    ("SG-M017", "RuntimeError: [enforce fail at alloc_cpu.cpp:135] DefaultCPUAllocator: can't allocate memory: you "
     "tried to allocate 3389157376 bytes. Error code 12 (Cannot allocate memory)", "torch 2, alloc_cpu.cpp", "vllm"),
    ("SG-H008", "OSError: [Errno 28] No space left on device", "Linux, ENOSPC", "vllm"),
    ("SG-H008", "OSError: [Errno 28] No space left on device: '/hub/models--acme--one/blobs/1f'", "Linux, ENOSPC",
     "vllm"),
    ("SG-H008", "UserWarning: Not enough free disk space to download the file.", "huggingface_hub 2.4", "vllm"),
    ("SG-H012", "ssl.SSLCertVerificationError: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate "
     "has expired (_ssl.c:1006)", "OpenSSL 3, X509_V_ERR_CERT_HAS_EXPIRED", "vllm"),
    ("SG-H012", "error: invalid peer certificate: certificate expired", "rustls 0.23", "vllm"),
    ("SG-H012", "RuntimeError: Data processing error: invalid peer certificate: UnknownIssuer", "rustls 0.23", "vllm"),
    ("SG-H012", "ssl.SSLCertVerificationError: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: Hostname "
     "mismatch, certificate is not valid for 'huggingface.co'. (_ssl.c:1006)", "Python 3.12, ssl", "vllm"),
    ("SG-H012", "RuntimeError: reqwest error: InvalidCertificate(NotValidForName)", "rustls 0.21", "vllm"),
    ("SG-H018", "requests.exceptions.HTTPError: 502 Server Error: Bad Gateway for url: "
     "https://hub.acme.io/api/models/acme/one", "requests, models.py", "vllm"),
    ("SG-H018", "requests.exceptions.HTTPError: 403 Client Error: Forbidden for url: "
     "https://huggingface.co/acme/one/raw/main/config.json", "requests, models.py", "vllm"),
    ("SG-H018", "huggingface_hub.errors.HfHubHTTPError: Client error '403 Forbidden' for url "
     "'https://huggingface.co/acme/one/raw/main/config.json'", "httpx, _models.py", "vllm"),
    ("SG-H018", "huggingface_hub.errors.HfHubHTTPError: Server error '502 Bad Gateway' for url "
     "'https://hub.acme.io/api/models/acme/one'", "httpx, _models.py", "vllm"),
    ("SG-C001", "zmq.error.ZMQError: Cannot assign requested address (addr='tcp://10.27.91.102:13345')",
     "vllm-project/vllm issue 31884", "vllm"),
    ("SG-L009", "OSError: [Errno 5] Input/output error", "JustVugg/colibri issue 191", "vllm"),
    ("SG-L009", "OSError: Input/output error (os error 5)", "Rust, std::io::Error", "vllm"),
    ("SG-L009", "OSError: [Errno 116] Stale file handle", "vllm-project/vllm-ascend issue 6815", "vllm"),
    ("SG-L009", "OSError: Stale file handle (os error 116)", "Rust, std::io::Error", "vllm"),
    # models
    ("SG-V023", "ValueError: Tokenizer class 'AcmeTokenizer' specified in the tokenizer config was not found. The "
     "tokenizer may need to be converted or re-saved.", "transformers 5.24, tokenization_auto.py", "vllm"),
    ("SG-V024", "ValueError: Found unknown quantization='fp8_block' in config", "vLLM 0.32.0, configs/mistral.py",
     "vllm"),
    ("SG-V025", "ValueError: Weight input_size_per_partition = 1408 is not divisible by weight quantization block_k = "
     "128.", "vLLM 0.32.0, fp8_utils.py", "vllm"),
    ("SG-A026", "llama_model_load: error loading model: illegal split file idx: 2 (file: "
     "/models/gpt-oss-00003-of-00003.gguf), model must be loaded with the first split",
     "lemonade-sdk/lemonade issue 499",
     "llamacpp"),
    ("SG-A026", "llama_model_load: error loading model: invalid split file: llama.gguf",
     "ggml-org/llama.cpp issue 9613",
     "llamacpp"),
    ("SG-A026", "llama_model_load: error loading model: invalid split count, given: 2 splits, but expected 3",
     "llama-server, build 11434", "llamacpp"),
    ("SG-A027", "E spec construct: draft model bos tokens must match target model to use speculation. add: 1 - 0, id: "
     "1 - 2)", "llama-server, build 11434", "llamacpp"),
    ("SG-A027", "E spec construct: the target and draft vocabs are not compatible", "LostRuins/koboldcpp issue 2325",
     "llamacpp"),
    ("SG-V033", "AttributeError: Qwen2Tokenizer has no attribute plums",
     "transformers 5, tokenization_utils_base.py", "vllm"),
    # siblings of the messages in the reports named fifth-*
    ("SG-A031", "/app/llama-server: error while loading shared libraries: libmtmd.so.0: cannot open shared object "
     "file: No such file or directory", "ggml-org/llama.cpp issue 17190 (2025-11)", "llamacpp"),
    ("SG-A031", "llama-server: error while loading shared libraries: libllama-server-impl.so: cannot open shared "
     "object file: No such file or directory", "kyuz0/amd-strix-halo-toolboxes issue 94 (2026-05)", "llamacpp"),
    ("SG-A031", "llama-server: error while loading shared libraries: libgomp.so.1: cannot open shared object file: No "
     "such file or directory", "fboulnois/llama-cpp-docker issue 8", "llamacpp"),
    ("SG-A031", "/app/llama-server: symbol lookup error: /app/libllama.so.0: undefined symbol: ggml_backend_meta",
     "glibc 2.39, elf/dl-lookup.c", "llamacpp"),
    ("SG-V043", "ValueError: invalid literal for int() with base 10: 'GPU-52a3a85d-3c55-ca3a-a955-82c69ed360fc'",
     "vllm-project/vllm issue 13815 (2025-02)", "vllm"),
    ("SG-V045", 'File "/opt/vllm/v1/worker.py", line 9, in run\nAttributeError: \'DPMetadata\' object has no '
     "attribute 'cu_tokens_across_dp_cpu'", "vllm-project/vllm issue 25826 (2025-09)", "vllm"),
    ("SG-V045", 'File "/opt/vllm/v1/executor/multiproc_executor.py", line 9, in run\nAttributeError: '
     "'MultiprocExecutor' object has no attribute 'io_thread_pool'", "vllm-project/vllm issue 18302 (2025-05)", "vllm"),
    ("SG-V042", '{"error":{"message":"Expecting \',\' delimiter: line 1 column 54 (char 53)","type":"BadRequestError",'
     '"param":null,"code":400}}', "vllm-project/vllm issue 43995 (2026-05)", "vllm"),
    ("SG-V042", '{"error":{"code":500,"message":"Failed to parse tool call arguments as JSON: '
     '[json.exception.parse_error.101] parse error at line 1, column 1812: missing closing quote"}}',
     "llama.cpp, common/chat.cpp", "llamacpp"),
    ("SG-V041", "ERROR 02-11 10:00:00 [x.py:1] Error trying to handle streaming tool call.",
     "vLLM 0.10, hermes_tool_parser.py", "vllm"),
    ("SG-C013", "RuntimeError: Gloo connectFullMesh failed with [/third_party/gloo/transport/tcp/pair.cc:144]"
     " no error", "sgl-project/sglang issue 3226 (2025-02)", "vllm"),
    # libraries of CUDA, and the network of the ranks
    ("SG-V048", "size mismatch for model.embed_tokens.weight: copying a param with shape torch.Size([49954, 4096]) "
     "from checkpoint, the shape in current model is torch.Size([32000, 4096]).", "torch 2.8, nn/modules/module.py",
     "vllm"),
    ("SG-V048", "AssertionError: Tried to load weights of size torch.Size([2048, 512])to a parameter of size "
     "torch.Size([2048, 1024])", "vLLM 0.21, model_executor/layers/linear.py", "vllm"),
    ("SG-G049", "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
     "torch 2.8, aten/src/ATen/cuda/CublasHandlePool.cpp", "vllm"),
    ("SG-G049", "RuntimeError: CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa, opb, "
     "m, n, k, &alpha, a, lda, b, ldb, &beta, c, ldc)`", "torch 2.8, aten/src/ATen/cuda/CUDABlas.cpp", "vllm"),
    ("SG-G050", "RuntimeError: cuDNN error: CUDNN_STATUS_SUBLIBRARY_VERSION_MISMATCH", "cuDNN 9", "vllm"),
    ("SG-G050", "RuntimeError: cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "cuDNN 9", "vllm"),
    ("SG-G023", "/usr/bin/ld: cannot find -lcuda: No such file or directory", "binutils 2.42, ld/ldlang.c", "vllm"),
    ("SG-C021", "ValueError: Proxy keys should use proper URL forms rather than plain scheme strings. Instead of "
     '"localhost", use "localhost://"', "httpx 0.27, _utils.py; sgl-project/sglang issue 521 (2024-06)", "sglang"),
    ("SG-C021", "ValueError: Unknown scheme for proxy URL URL('socks://127.0.0.1:17897/')",
     "httpx 0.28, _config.py; AUTOMATIC1111/stable-diffusion-webui issue 16474 (2024-11)", "vllm"),
    ("SG-C021", "ImportError: Using SOCKS proxy, but the 'socksio' package is not installed. Make sure to install "
     "httpx using `pip install httpx[socks]`.", "httpx 0.28, _transports/default.py", "vllm"),
    ("SG-C022", "RuntimeError: The server socket has failed to listen on any local network address. The server socket "
     "has failed to bind to [::]:29500 (errno: 98 - Address already in use).",
     "torch 2.1, csrc/distributed/c10d/socket.cpp", "vllm"),
    ("SG-C022", "zmq.error.ZMQError: Address already in use (addr='tcp://127.0.0.1:5570')",
     "vllm-project/vllm issue 7196 (2024-08)", "vllm"),
    ("SG-V057", 'File "/opt/sglang/srt/models/qwen2.py", line 90, in __init__\n    assert self.total_num_heads % '
     "attn_tp_size == 0\nAssertionError", "SGLang 0.5.23, srt/models/qwen2.py", "sglang"),
    ("SG-V048", 'File "/opt/vllm/model_executor/models/llama.py", line 4, in load_weights\n    weight_loader(param, '
     "loaded_weight)\n    assert param_data.shape == loaded_weight.shape\nAssertionError",
     "vLLM 0.32.0, model_executor/layers/linear.py", "vllm"),
    ("SG-X012", "RuntimeError: The memory capacity is unbalanced. Some GPUs may be occupied by other processes. "
     "pre_model_load_memory=18.88, local_gpu_memory=22.53, local_gpu_memory * 0.9=20.28",
     "SGLang 0.5.23, model_executor/model_runner.py", "sglang"),
    ("SG-V055", "TimeoutError: Timed out waiting for engine core processes to start. This is often caused by slow "
     "weight loading for large models. Waited 600s (configured by VLLM_ENGINE_READY_TIMEOUT_S).",
     "vLLM 0.33, v1/engine/core_client.py", "vllm"),
    ("SG-V056", "ValueError: Unrecognized configuration class <class 'transformers.models.gemma4.Gemma4Config'> for "
     "this kind of AutoModel: AutoModel.", "transformers 5, models/auto/auto_factory.py", "vllm"),
    ("SG-L005", "ValueError: Could not detect config format for no config file found. With config_format 'auto', "
     "ensure your model has either config.json (HF format) or params.json (Mistral format).",
     "vLLM 0.33, transformers_utils/config.py", "vllm"),
    ("SG-G052", "Failed: Cuda error /workspace/csrc/custom_all_reduce.cuh:455 'invalid argument'",
     "vllm-project/vllm issue 56180 (2026-09)", "vllm"),
    ("SG-G055", "NotImplementedError: Could not run '_C::rms_norm' with arguments from the 'CPU' backend.",
     "torch 2.8, OperatorEntry.cpp", "vllm"),
    ("SG-G056", "RuntimeError: [TensorRT-LLM][ERROR] Assertion failed: Failed to initialize cutlass TMA WS grouped "
     "gemm. Error: Error Internal", "FlashInfer 0.6, moe_gemm_tma_ws_launcher.inl", "vllm"),
    ("SG-C024", 'zmq.error.ZMQError: ipc path "/scratch/job/tmp/6f5d" is longer than 107 characters '
     "(sizeof(sockaddr_un.sun_path)).", "pyzmq 27, zmq/backend", "vllm"),
    ("SG-D036", "RuntimeError: can't start new thread", "Python 3.12, _thread", "vllm"),
    ("SG-D036", "OpenBLAS blas_thread_init: pthread_create failed for thread 63 of 64: Resource temporarily "
     "unavailable",
     "OpenBLAS 0.3, driver/others/blas_server.c", "vllm"),
    ("SG-D036", "libgomp: Thread creation failed: Resource temporarily unavailable", "GCC 13, libgomp", "vllm"),
    ("SG-D036", "bash: fork: retry: Resource temporarily unavailable", "bash 5, jobs.c", "vllm"),
    ("SG-G053", "NVRM: The NVIDIA GPU 0000:01:00.0 (PCI ID: 10de:2b85) installed in this system requires use of the "
     "NVIDIA open kernel modules.", "nvidia.ko 575", "vllm"),
    ("SG-G054", "NVRM: GPU 0000:01:00.0: RmInitAdapter failed! (0x62:0x55:2021)", "nvidia.ko 575", "vllm"),
    ("SG-G054", "Unable to determine the device handle for GPU0000:01:00.0: Unknown Error", "nvidia-smi 570", "vllm"),
    ("SG-G053", "[ 1157.046099] NVRM: installed in this system is not supported by open",
     "NVIDIA/open-gpu-kernel-modules issue 322 (2022-07)", "vllm"),
    ("SG-G016", DAEMON + "CDI device injection failed: unresolvable CDI devices acme.io/gpu=demo1.",
     "moby/moby issue 47633 (2024-03)", ""),
    ("SG-G016", 'failed to load CDI Spec: failed to parse CDI Spec "/var/run/cdi/acme.yaml": failed add device '
     '"demo1": invalid device, empty device edits', "container-device-interface, pkg/cdi/device.go", ""),
    ("SG-C036", "httpcore.LocalProtocolError: Illegal header value b'Bearer '", "BerriAI/litellm issue 7291 (2024-12)",
     "vllm"),
    ("SG-C037", "httpx.UnsupportedProtocol: Request URL is missing an 'http://' or 'https://' protocol.",
     "FoundationAgents/OpenManus issue 770 (2025-03)", "vllm"),
    ("SG-X013", "RuntimeError: Rank 0 scheduler died during initialization (exit code: -9). If exit code is -9 "
     "(SIGKILL), a common cause is the OS OOM killer.", "SGLang 0.5.23, entrypoints/engine.py", "sglang"),
    ("SG-X013", "Exit code: -9", "SGLang 0.5.9, entrypoints/engine.py", "sglang"),
    ("SG-X013", "RuntimeError: Rank 0 scheduler died during initialization (exit code: -6).",
     "SGLang 0.5.23, entrypoints/engine.py", "sglang"),
    ("SG-V058", "Exception: flashinfer_python is installed with version 0.5.2, which is less than the minimum required "
     "version 0.6.1. Please uninstall the old version.", "SGLang 0.5.23, utils/common.py", "sglang"),
    ("SG-V058", "Exception: flashinfer_python with minimum required version 0.6.1 is not installed. Please install it.",
     "SGLang 0.5.23, utils/common.py", "sglang"),
    ("SG-V048", "AssertionError: self.org_vocab_size=151936 self.use_presharded_weights=False "
     "loaded_weight.shape[output_dim]=152064", "SGLang 0.5.23, layers/vocab_parallel_embedding.py", "sglang"),
    ("SG-V024", "ValueError: Unable to find matching target for model.layers.0.mlp.gate in the compressed-tensors "
     "config.",
     "vLLM 0.20, compressed_tensors/utils.py", "vllm"),
    ("SG-C025", "ValueError: Current node has no GPU available. current_node_resource={'CPU': 8.0}. vLLM engine cannot "
     "start without GPU.", "vLLM 0.32, v1/executor/ray_utils.py", "vllm"),
    ("SG-C025", "ValueError: The number of required GPUs exceeds the total number of available GPUs in the placement "
     "group.", "vLLM 0.32, v1/executor/ray_utils.py", "vllm"),
    ("SG-G034", "RuntimeError: CUDA error: too many resources requested for launch", "libcudart 12.9, error 701",
     "vllm"),
    ("SG-V059", "RuntimeError: probability tensor contains either `inf`, `nan` or element < 0",
     "torch 2.8, native/cuda/MultinomialKernel.cu", "fastchat"),
    ("SG-G040", "RuntimeError: No compiled cutlass_scaled_mm for CUDA device capability: 120",
     "vllm-project/vllm issue 32109 (2026-01)", "vllm"),
    ("SG-G040", "RuntimeError: MXFP4 quantization is not supported on gfx942",
     "vllm-project/vllm issue 34641 (2026-02)", "vllm"),
    ("SG-A050", "/app/tools/server/server.cpp:3624: pos_min == -1, but n_past > 0 - should not happen: "
     "https://github.com/ggml-org/llama.cpp/pull/13833#discussion_r2116181237", "llama.cpp, tools/server/server.cpp",
     "llamacpp"),
    ("SG-A050", "slot update_slots: id  2 | task 1950 | n_past = 75, slot.prompt.tokens.size() = 821, seq_id = 2, "
     "pos_min = -1", "ggml-org/llama.cpp issue 17060 (2025-11)", "llamacpp"),
)  # fmt: skip

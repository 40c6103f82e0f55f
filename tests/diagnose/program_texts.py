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
)  # fmt: skip

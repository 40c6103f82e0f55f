/home/me/venvs/vllm/bin/python3.12 /home/me/venvs/vllm/bin/vllm serve \
  Qwen/Qwen2.5-Coder-7B-Instruct-AWQ \
  --host 127.0.0.1 \
  --port 8001 \
  --gpu-memory-utilization 0.85 \
  --dtype auto \
  --enforce-eager \
  --trust-remote-code \
  --enable-prefix-caching \
  --max-model-len 32768 \
  --max-num-seqs 16 \
  --max-num-batched-tokens 8192 \
  --served-model-name workspace-coder \
  --enable-auto-tool-choice \
  --tool-call-parser hermes

env "PATH=/home/me/miniconda3/envs/gpu/bin:$PATH" \
  VLLM_USE_V2_MODEL_RUNNER=0 \
  /home/me/miniconda3/envs/gpu/bin/vllm serve Qwen/Qwen3-4B \
  --host 127.0.0.1 \
  --port 8001 \
  --api-key local-router \
  --dtype auto \
  --max-model-len 1024 \
  --max-num-seqs 8 \
  --max-num-batched-tokens 1024 \
  --gpu-memory-utilization 0.35 \
  --served-model-name qwen3_4b_vllm

env "PATH=/home/me/miniconda3/envs/gpu/bin:$PATH" \
  VLLM_USE_V2_MODEL_RUNNER=0 \
  /home/me/miniconda3/envs/gpu/bin/vllm serve Qwen/Qwen3-0.6B \
  --host 127.0.0.1 \
  --port 8002 \
  --api-key local-router \
  --dtype auto \
  --max-model-len 1024 \
  --max-num-seqs 8 \
  --max-num-batched-tokens 1024 \
  --gpu-memory-utilization 0.20 \
  --served-model-name qwen3_0_6b_vllm

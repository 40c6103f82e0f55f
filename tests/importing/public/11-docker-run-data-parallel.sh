docker rm -f vllm 2>/dev/null || true
docker run -d --name vllm --rm \
  --gpus all \
  --ipc=host \
  --network=host \
  -v /root/.cache/huggingface:/root/.cache/huggingface \
  -e HF_TOKEN="${HF_TOKEN:-}" \
  vllm/vllm-openai:nightly \
  "google/gemma-4-31B-it" \
  --tensor-parallel-size 2 \
  --data-parallel-size 4 \
  --max-model-len 262144 \
  --gpu-memory-utilization 0.95 \
  --enable-chunked-prefill \
  --reasoning-parser gemma4 \
  --enable-auto-tool-choice \
  --tool-call-parser gemma4 \
  --trust-remote-code \
  --hf-overrides '{"vision_config": {"default_output_length": 1120}}' \
  --mm-processor-kwargs '{"max_soft_tokens": 1120}' \
  --limit-mm-per-prompt '{"image": 8}' \
  --port 8000

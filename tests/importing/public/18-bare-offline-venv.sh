HF_HUB_OFFLINE=1 ~/venvs/sm86/bin/vllm serve \
  /mnt/zoo/Qwen3.8-27B-W4A16-AutoRound \
  --served-model-name qwen27b \
  --tensor-parallel-size 2 \
  --max-model-len 262144 \
  --gpu-memory-utilization 0.93 \
  --max-num-seqs 1 \
  --kv-cache-dtype fp8_e4m3 \
  --enable-chunked-prefill \
  --speculative-config '{"method":"mtp","num_speculative_tokens":3}'

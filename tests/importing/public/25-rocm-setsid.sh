cd /srv/git/vllm-fork
env HIP_VISIBLE_DEVICES=0,1 FLASH_ATTENTION_TRITON_AMD_ENABLE=TRUE \
    VLLM_USE_V2_MODEL_RUNNER=0 \
    HF_HUB_OFFLINE=1 \
  setsid nohup .venv/bin/vllm serve "Qwen/Qwen3-14B" \
    --served-model-name "qwen3-14b" \
    --tensor-parallel-size 2 --dtype float16 \
    --max-model-len "32768" --max-num-seqs 4 \
    --max-num-batched-tokens 4096 \
    --kv-cache-memory-bytes "${KVBYTES:-6442450944}" \
    --compilation-config '{"cudagraph_capture_sizes":[1,2,3,4]}' \
    --no-enable-prefix-caching \
    --enable-auto-tool-choice --tool-call-parser "hermes" \
    --reasoning-parser "qwen3" \
    --generation-config auto \
    > "/srv/tmp/server.log" 2>&1 < /dev/null &
echo "launched (pid $!)"

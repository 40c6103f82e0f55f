CUDA_VISIBLE_DEVICES=1,2,3  vllm serve /root/llm/command-a-03-2025 -tp=2 --gpu-memory-utilization 0.95 --swap-space 8 --max-num-seqs=1

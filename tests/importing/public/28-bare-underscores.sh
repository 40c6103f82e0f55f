CUDA_VISIBLE_DEVICES=0,1,2,3 vllm serve openai/gpt-oss-120b \
    --port 8017 \
    --tensor_parallel_size 4 \
    --data_parallel_size 1 \
    --served_model_name rerank

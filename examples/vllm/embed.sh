#!/bin/sh
# The embedding engine with 14,000 MiB of the card, on port 8001. Arguments go to vLLM; MODEL names another model.
exec hamirt run --name embed --mem 14000MiB -- \
    vllm serve "${MODEL:-BAAI/bge-m3}" --port 8001 --runner pooling \
    --max-model-len 8192 --max-num-seqs 32 --gpu-memory-utilization 0.85 "$@"

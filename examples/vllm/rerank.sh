#!/bin/sh
# The reranker with 8,000 MiB of the card, on port 8002. Arguments go to vLLM; MODEL names another model.
exec hamirt run --name rerank --mem 8000MiB -- \
    vllm serve "${MODEL:-BAAI/bge-reranker-v2-m3}" --port 8002 --runner pooling \
    --max-model-len 512 --max-num-seqs 8 --gpu-memory-utilization 0.85 "$@"

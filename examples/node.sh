#!/bin/bash
# Trains on several machines that see one file system and one corpus: the same command on each, numbered from 0.
#
#   node.sh NODE_RANK NUM_NODES FIRST_NODE CONFIG.yaml [a.b=c ...]
#
# FIRST_NODE is the address of node 0, RANKS_PER_NODE the ranks of each (default: its GPUs, or 1). Set
# data.canonical_nodes to NUM_NODES or a multiple, so that each node fetches its own shards only. SIGTERM to any node's
# torchrun saves and stops all of them; the same command goes on.
set -euo pipefail
node_rank=$1 num_nodes=$2 first_node=$3
shift 3
# torchrun kills ranks 30 s after SIGTERM, which is short for the checkpoint of a large model.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}"
gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)
exec torchrun --nnodes "$num_nodes" --node-rank "$node_rank" --nproc-per-node "${RANKS_PER_NODE:-$((gpus > 0 ? gpus : 1))}" \
    --master-addr "$first_node" --master-port "${MASTER_PORT:-29500}" --max-restarts "${MAX_RESTARTS:-0}" \
    -m ado_stream.cli train "$@"

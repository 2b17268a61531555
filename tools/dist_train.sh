#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: bash tools/dist_train.sh CONFIG PROCESSES [train.py's arguments]
# One process a GPU; on a machine without one the processes run on the CPU.
# Environment: NNODES, NODE_RANK, MASTER_ADDR, PORT.
set -euo pipefail
[[ $# -ge 2 && $2 =~ ^[0-9]+$ ]] || { sed -n 3,5p "$0" >&2; exit 2; }
here="$(cd "$(dirname "$0")" && pwd)"
exec python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$2" \
    "$here/train.py" "$1" --launcher pytorch "${@:3}"

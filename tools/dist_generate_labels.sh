#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: bash tools/dist_generate_labels.sh CONFIG CHECKPOINT PROCESSES [generate_labels.py's …]
# Several machines need one file system for the label file: the ranks meet there.
# Exit code 1 with a label file beside its report: some boxes could not be labeled.
# One process a GPU; on a machine without one the processes run on the CPU.
# Environment: NNODES, NODE_RANK, MASTER_ADDR, PORT.
set -euo pipefail
[[ $# -ge 3 && $3 =~ ^[0-9]+$ ]] || { sed -n 3,7p "$0" >&2; exit 2; }
here="$(cd "$(dirname "$0")" && pwd)"
exec python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$3" \
    "$here/generate_labels.py" "$1" "$2" --launcher pytorch "${@:4}"

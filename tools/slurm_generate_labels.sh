#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: bash tools/slurm_generate_labels.sh PARTITION JOB_NAME CONFIG CHECKPOINT [arguments]
# The arguments are those of generate_labels.py. Several machines need one file system for the label
# file: the ranks meet there.
# Environment: GPUS, GPUS_PER_NODE, CPUS_PER_TASK, SRUN_ARGS; GRES, empty on CPUs.
set -euo pipefail
[ $# -ge 4 ] || { sed -n 3,6p "$0" >&2; exit 2; }
here="$(cd "$(dirname "$0")" && pwd)"
gres="${GRES-gpu:${GPUS_PER_NODE:-8}}"
# shellcheck disable=SC2086  # SRUN_ARGS holds several words
srun -p "$1" --job-name="$2" \
    ${gres:+--gres="$gres"} \
    --ntasks="${GPUS:-8}" \
    --ntasks-per-node="${GPUS_PER_NODE:-8}" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    python -u "$here/generate_labels.py" "$3" "$4" --launcher slurm "${@:5}"

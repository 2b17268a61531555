#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"

usage() {
    cat <<'TEXT'
Usage: bash tools/quickstart.sh [options]

Installs everything into .venv and runs the whole job on the demo data: boxes in, a Mask
Auto-Labeler trained on them, a mask for every box, a Mask R-CNN trained on the masks, and a table
that says how good both are. What is done already is not done again.

  --python PYTHON     interpreter for .venv, 3.10 to 3.12 (default: python3)
  --work-dir DIR      folder for the results (default: work_dirs/quickstart)
  --skip-install      use the python on the PATH as it is, make no .venv
  --device DEVICE     auto, cpu or cuda (default: auto, an NVIDIA GPU where there is one)
  --help              this text
TEXT
}

python="python3"
work_dir="$root/work_dirs/quickstart"
skip_install=""
device="auto"
while [ $# -gt 0 ]; do
    case "$1" in
        --python | --work-dir | --device)
            [ $# -ge 2 ] || { echo "$1 needs a value; see --help" >&2; exit 2; } ;;
    esac
    case "$1" in
        --python) python="$2"; shift 2 ;;
        --work-dir) work_dir="$(realpath -m "$2")"; shift 2 ;;
        --skip-install) skip_install=1; shift ;;
        --device) device="$2"; shift 2 ;;
        --help | -h) usage; exit 0 ;;
        *) echo "unknown option $1" >&2; usage >&2; exit 2 ;;
    esac
done
case "$device" in
    auto | cpu | cuda) ;;
    *) echo "--device is $device, but must be auto, cpu or cuda" >&2; exit 2 ;;
esac

if [ -z "$skip_install" ]; then
    bash "$root/tools/setup_env.sh" --python "$python" --device "$device"
    python="$root/.venv/bin/python"
fi
cd "$root"
exec "$python" tools/quickstart.py --work-dir "$work_dir" --device "$device"

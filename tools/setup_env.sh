#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes .venv with everything that mal_mmdet needs; a second run finds it done.
#
# Usage: bash tools/setup_env.sh [--python PYTHON] [--device auto|cpu|cuda]
#
# mmcv ships its operators as source. They are compiled once (10 to 20 minutes on two cores) and
# kept as a wheel in ${MAL_MMDET_CACHE:-~/.cache/mal_mmdet}, in a folder named after the Python,
# torch and CUDA that it was built for.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
base_python="python3"
device="auto"
while [ $# -gt 0 ]; do
    case "$1" in
        --python) base_python="$2"; shift 2 ;;
        --device) device="$2"; shift 2 ;;
        *) echo "setup_env.sh: unknown option $1" >&2; exit 2 ;;
    esac
done

venv="$root/.venv"
python="$venv/bin/python"
stamp="$venv/.mal_mmdet_installed"
# What was asked for; when it changes, the installation runs again.
wanted="$(cat "$root/constraints.txt" "$root/requirements.txt" "$root/requirements-dev.txt" \
    "$root/setup.py"; echo "$device")"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    exit 0
fi

say() { printf '\n== %s\n' "$*"; }

if [ ! -x "$python" ]; then
    "$base_python" - <<'PY' || exit 1
import sys
if not (3, 10) <= sys.version_info[:2] <= (3, 12):
    sys.exit(f"mal_mmdet is tested with Python 3.10 to 3.12, but {sys.executable} is "
             f"{sys.version.split()[0]}; name another one with --python")
PY
    say "making .venv with $("$base_python" --version)"
    "$base_python" -m venv "$venv"
fi

pip() { "$python" -m pip --disable-pip-version-check "$@"; }

say "installing torch and torchvision (about 5 GB with their CUDA libraries)"
pip install -q --upgrade pip
pip install -c "$root/constraints.txt" torch torchvision | grep -E '^(Downloading|Successfully)' || true
# Building mmcv needs a setuptools that reads SPDX licences and still has pkg_resources.
pip install -q 'setuptools>=77,<82' wheel ninja psutil packaging

# On which device mmcv's operators will run: "cpu", or "cuda<version>-sm<capability>".
ops="$("$python" - "$device" <<'PY'
import re, shutil, subprocess, sys
import torch
def choose(device):
    if device == "cpu":
        return "cpu", "the CPU was asked for"
    if not torch.cuda.is_available():
        if device == "cuda":
            sys.exit("--device cuda was asked for, but torch finds no NVIDIA GPU")
        return "cpu", "no NVIDIA GPU found"
    nvcc = shutil.which("nvcc")
    found = None
    if nvcc:
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
        match = re.search(r"release (\d+\.\d+)", text)
        found = match and match[1]
    if found != torch.version.cuda:
        return "cpu", (f"torch needs nvcc {torch.version.cuda}, found {found or 'none'}: "
                       "phase 1 runs on the GPU, phase 2 on the CPU")
    major, minor = torch.cuda.get_device_capability()
    return f"cuda{found}-sm{major}{minor}", f"nvcc {found} matches torch"
ops, why = choose(sys.argv[1])
print(f"mmcv operators for {ops}: {why}", file=sys.stderr)
print(ops)
PY
)"
tag="$("$python" -c 'import sys, torch
print(f"cp{sys.version_info[0]}{sys.version_info[1]}-torch{torch.__version__.split(chr(43))[0]}")')-$ops"
mmcv="$(grep '^onedl-mmcv==' "$root/constraints.txt")"
cache="${MAL_MMDET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mal_mmdet}/wheels/$tag"
mkdir -p "$cache"
if ! ls "$cache"/onedl_mmcv-"${mmcv#*==}"-*.whl >/dev/null 2>&1; then
    say "compiling mmcv's operators for $tag: 10 to 20 minutes on two cores"
    build="$(mktemp -d)"
    trap 'rm -rf "$build"' EXIT
    if [ "$ops" = cpu ]; then
        export MMCV_WITH_OPS=1 FORCE_CUDA=0
    else
        capability="${ops#*-sm}"
        export MMCV_WITH_OPS=1 FORCE_CUDA=1
        export TORCH_CUDA_ARCH_LIST="${capability%?}.${capability: -1}"
    fi
    log="$cache/build.log"
    # The build says [done/total] for every file; only that reaches the terminal.
    if ! pip wheel -v --no-build-isolation --no-deps -w "$build" "$mmcv" 2>&1 | tee "$log" \
            | grep --line-buffered -oE '^ *\[[0-9]+/[0-9]+\]' \
            | awk '{ printf "\r   compiled %s files", $1; fflush() } END { print "" }'; then
        echo "mmcv could not be built; the end of $log:" >&2
        tail -n 20 "$log" >&2
        exit 1
    fi
    mv "$build"/*.whl "$cache/"
fi

say "installing mal_mmdet and the OpenMMLab packages"
pip install -q "$cache"/onedl_mmcv-"${mmcv#*==}"-*.whl -c "$root/constraints.txt"
pip install -q --no-build-isolation -c "$root/constraints.txt" -e "$root" \
    -r "$root/requirements-dev.txt"
"$python" -c 'import mal_mmdet, mmcv.ops; print("mal_mmdet", mal_mmdet.__version__, "is installed")'
printf '%s' "$wanted" > "$stamp"

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes .venv with everything that mal_mmdet needs; a second run finds it done.
#
# Usage: bash tools/setup_env.sh [--python PYTHON] [--device auto|cpu|cuda] [--constraints FILE]
#
# FILE pins the versions (default: constraints.txt; constraints-lowest.txt holds the lowest ones
# that requirements.txt allows). It has to pin onedl-mmcv.
#
# mmcv ships its operators as source. They are compiled once (10 to 20 minutes on two cores) and
# kept as a wheel in ${MAL_MMDET_CACHE:-~/.cache/mal_mmdet}, in a folder named after the Python,
# torch and CUDA that it was built for.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
base_python="python3"
device="auto"
constraints="$root/constraints.txt"
while [ $# -gt 0 ]; do
    case "$1" in
        --python) base_python="$2"; shift 2 ;;
        --device) device="$2"; shift 2 ;;
        --constraints) constraints="$(realpath "$2")"; shift 2 ;;
        *) echo "setup_env.sh: unknown option $1" >&2; exit 2 ;;
    esac
done

venv="$root/.venv"
python="$venv/bin/python"
export PATH="$venv/bin:$PATH"  # torch's build looks for ninja there

say() { printf '\n== %s\n' "$*"; }
fail() { echo "$*" >&2; exit 1; }
pip() { "$python" -m pip --disable-pip-version-check "$@"; }

# What is installed: the device asked for, and the files that say what to install. When they
# change, the installation runs again. Operators for a GPU run on the CPU as well.
stamp="$venv/.mal_mmdet_installed"
wanted="$(cd "$root" && cat "$constraints" requirements.txt requirements-dev.txt setup.py)"
if [ -f "$stamp" ] && [ "$(tail -n +2 "$stamp")" = "$wanted" ]; then
    installed="$(head -n 1 "$stamp")"
    if [ "$device" != cuda ] || [ "$installed" = cuda ]; then
        exit 0
    fi
fi

command -v c++ >/dev/null || command -v g++ >/dev/null \
    || fail "a C++ compiler is needed to build mmcv's operators (Debian: apt-get install g++)"
command -v "$base_python" >/dev/null || fail "$base_python is not found; name another --python"
if ! "$python" -m pip --version >/dev/null 2>&1; then
    "$base_python" - <<'PY'
import sys
if not (3, 10) <= sys.version_info[:2] <= (3, 12):
    sys.exit(f"mal_mmdet is tested with Python 3.10 to 3.12, but {sys.executable} is "
             f"{sys.version.split()[0]}; name another one with --python")
PY
    say "making .venv with $("$base_python" --version)"
    "$base_python" -m venv --clear "$venv" \
        || fail "no virtual environment could be made (Debian: apt-get install python3-venv)"
elif [ "$base_python" != python3 ]; then
    echo ".venv exists and stays with $("$python" --version); delete it to use $base_python"
fi

say "installing torch and torchvision (about 5 GB with their CUDA libraries)"
pip install -q --upgrade pip
pip install -q -c "$constraints" torch torchvision
# Building mmcv needs a setuptools that reads SPDX licences and still has pkg_resources.
pip install -q 'setuptools>=77,<82' wheel ninja psutil packaging

ops="$("$python" "$root/tools/mmcv_operators.py" "$device")"
tag="$("$python" -c 'import sys, torch
print("cp%d%d-torch%s" % (*sys.version_info[:2], torch.__version__.split("+")[0]))')-$ops"
mmcv="$(grep '^onedl-mmcv==' "$constraints")" || fail "$constraints does not pin onedl-mmcv"
cache="${MAL_MMDET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mal_mmdet}/wheels/$tag"
mkdir -p "$cache"
if ! ls "$cache"/onedl_mmcv-"${mmcv#*==}"-*.whl >/dev/null 2>&1; then
    say "compiling mmcv's operators for $tag: 10 to 20 minutes on two cores"
    build="$(mktemp -d "$cache/build.XXXX")"
    trap 'rm -rf "$build"' EXIT
    log="$cache/build.log"
    export MMCV_WITH_OPS=1
    if [ "$ops" = cpu ]; then
        export FORCE_CUDA=0
        hide_gpu=(env CUDA_VISIBLE_DEVICES=)  # mmcv builds for CUDA wherever it sees a GPU
    else
        export FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST="${ops#*-sm}"
        hide_gpu=()
    fi
    # pip's own cache does not know for which torch a wheel was built.
    # The build says [done/total] for every file; that reaches the terminal, the rest the log.
    if "${hide_gpu[@]}" "$python" -m pip --disable-pip-version-check wheel -v --no-cache-dir \
            --no-build-isolation --no-deps -w "$build" "$mmcv" 2>&1; then
        echo "exit code 0"
    else
        echo "exit code $?"
    fi | tee "$log" | awk 'match($0, /^ *\[[0-9]+\/[0-9]+\]/) {
                   printf "\r   compiled %s files", substr($0, RSTART, RLENGTH); fflush() }
               END { print "" }'
    if [ "$(tail -n 1 "$log")" != "exit code 0" ]; then
        tail -n 20 "$log" >&2
        [ "$ops" = cpu ] || echo "building for the GPU needs the whole CUDA toolkit, with headers;" \
            "with --device cpu phase 1 can still run on the GPU, and phase 2 on the CPU" >&2
        fail "mmcv could not be built; the whole log is $log"
    fi
    mv "$build"/*.whl "$cache/"
fi

say "installing mal_mmdet and the OpenMMLab packages"
wheel="$(ls "$cache"/onedl_mmcv-"${mmcv#*==}"-*.whl)"
pip install -q -c "$constraints" "$wheel"
pip install -q --force-reinstall --no-deps "$wheel"  # the version may be there for another device
pip install -q --no-build-isolation -c "$constraints" -e "$root" \
    -r "$root/requirements-dev.txt"
"$python" -c 'import mal_mmdet; print("mal_mmdet", mal_mmdet.__version__, "is installed")'
# "auto" has found out which device it is.
case "$ops" in cpu) device=cpu ;; *) device=cuda ;; esac
printf '%s\n%s' "$device" "$wanted" > "$stamp"

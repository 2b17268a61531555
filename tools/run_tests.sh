#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sets up .venv if needed and runs the linter and the tests.
#
# Usage: bash tools/run_tests.sh [pytest's arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
bash tools/setup_env.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# Most tests are small and use one thread, so two run at a time; tests/conftest.py orders them.
exec .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"

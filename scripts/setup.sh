#!/bin/sh
# Makes the virtual environment that tests, checks and the demo run in: setup.sh PYTHON FOLDER
set -eu
python=$1
venv=$2

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: $python is older than 3.11; name another one: make PYTHON=python3.12 test" >&2
    exit 1
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
cores=$(nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2)

# torch first and pinned: an unpinned one may come with gigabytes of CUDA libraries
"$venv/bin/python" -m pip install --quiet --constraint constraints.txt torch
CMAKE_BUILD_PARALLEL_LEVEL=$cores "$venv/bin/python" -m pip install --quiet --constraint constraints.txt --editable '.[dev]'

#!/bin/sh
# Patches a llama.cpp checkout and builds it for NVIDIA cards: those that are present, or all current ones. --help says how it is used.
set -eu
# shellcheck source=scripts/build-common.sh
. "$(dirname "$0")/build-common.sh"
main cuda "$@"

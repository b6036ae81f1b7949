#!/bin/sh
# Patches a llama.cpp checkout and builds it for Apple's GPUs, with the Metal library inside. --help says how it is used.
set -eu
# shellcheck source=scripts/build-common.sh
. "$(dirname "$0")/build-common.sh"
main metal "$@"

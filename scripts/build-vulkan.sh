#!/bin/sh
# Patches a llama.cpp checkout and builds it for any GPU with a Vulkan driver. --help says how it is used.
set -eu
# shellcheck source=scripts/build-common.sh
. "$(dirname "$0")/build-common.sh"
main vulkan "$@"

# shellcheck shell=sh
# What the build-*.sh scripts share; they source it and call `main BACKEND "$@"`. Plain sh, git and CMake are all that
# is needed. `yarn-gguf build` does the same from Python, with the same flags.

usage() {
    cat <<END
usage: $(basename "$0") [options] TREE

Puts the patches into TREE, a llama.cpp checkout, and builds it with the $backend backend.

  --build DIR   where to build            [default: TREE/build-$backend]
  --tools       llama-server, llama-cli, llama-quantize and others too
  --rpc         with the backend that spreads a model over several machines
  --jobs N      compilers at once         [default: the number of cores]
  --no-patch    build the tree as it is
  --dry-run     print the commands, run nothing
END
}

fail() {
    status=$1
    shift
    echo "error: $*" >&2
    exit "$status"
}

# A command, run; or printed as it could be typed.
run() {
    if [ "$dry" = yes ]; then
        line=
        for word in "$@"; do
            case $word in
            *[!A-Za-z0-9_./:=+-]*) word="'$(printf %s "$word" | sed "s/'/'\\\\''/g")'" ;;
            esac
            line="$line${line:+ }$word"
        done
        printf '%s\n' "$line"
    else
        "$@"
    fi
}

# The patches of one release, in order: its own text of each, else that of the next newer one.
patches_for() {
    while read -r name; do
        found=$patches/$name
        for release in $(releases); do
            [ -z "$1" ] && break
            [ -f "$patches/variants/$release/$name" ] && found=$patches/variants/$release/$name
            [ "$release" = "$1" ] && break
        done
        echo "$found"
    done <"$patches/series"
}

# Older releases that have patches of their own, newest first.
releases() {
    for folder in "$patches"/variants/*/; do
        [ -d "$folder" ] && basename "$folder"
    done | sort -t. -k1,1nr -k2,2nr -k3,3nr
}

# The files that the patches change, copied to a folder of their own: there they are tried, and only whole comes back.
copy_files() {
    sed -n 's,^--- a/,,p' "$patches"/0*.patch "$patches"/variants/*/*.patch | sort -u | while read -r file; do
        if [ -f "$1/$file" ]; then
            mkdir -p "$2/$(dirname "$file")"
            cp -p "$1/$file" "$2/$file"
        fi
    done
}

# Applies a list of patches, forwards or backwards, inside a folder that is no repository.
try() {
    folder=$1 order=$2
    shift 2
    for one in $order; do
        (cd "$folder" && GIT_CEILING_DIRECTORIES=$(dirname "$folder") git apply "$@" "$one") || return 1
    done
}

reversed() {
    turned=
    for one in $1; do
        turned="$one
$turned"
    done
    echo "$turned"
}

# Puts the patches in; in a dry run, prints what would. Which list fits is tried either way, on copies.
put_patches_in() {
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'exit 129' HUP
    spaces=$IFS
    IFS='
' # lists of paths, which may hold spaces
    choose
    IFS=$spaces
}

choose() {
    for release in '' $(releases); do
        list=$(patches_for "$release")
        rm -rf "$work/files"
        copy_files "$tree" "$work/files"
        if try "$work/files" "$(reversed "$list")" --reverse 2>/dev/null; then
            echo "the patches are in already" >&2
            return
        fi
        rm -rf "$work/files"
        copy_files "$tree" "$work/files"
        if try "$work/files" "$list" 2>/dev/null; then
            take_over "$list"
            return
        fi
    done
    rm -rf "$work/files"
    copy_files "$tree" "$work/files"
    try "$work/files" "$(patches_for '')" 2>&1 | sed 's/^/  /' >&2
    fail 3 "$tree: the patches do not fit this revision; patches/UPSTREAM names those that they are for"
}

take_over() {
    if [ "$dry" = yes ]; then
        # the ceiling: inside another repository git would skip the files without a word
        for one in $1; do run env GIT_CEILING_DIRECTORIES="$(dirname "$tree")" git -C "$tree" apply "$one"; done
        return
    fi
    (cd "$work/files" && find . -type f) | while read -r file; do
        cmp -s "$work/files/$file" "$tree/$file" || cp "$work/files/$file" "$tree/$file"
    done
    echo "the patches were put in" >&2
}

# For CUDA: the cards that are here; where there is none, all current ones that the compiler knows.
cuda_architectures() {
    found=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | tr -d '. ' | sort -nu)
    if [ -z "$found" ]; then
        known=$(nvcc --list-gpu-arch 2>/dev/null | sed -n 's/^compute_//p')
        for number in 75 80 86 89 90 100 120; do
            case " $(echo "${known:-$number}" | tr '\n' ' ') " in
            *" $number "*) found="$found $number" ;;
            esac
        done
    fi
    # shellcheck disable=SC2086 # a list of numbers
    set -- $found
    list=
    while [ $# -gt 1 ]; do
        list="$list$1-real;"
        shift
    done
    echo "$list$1"
}

need() {
    command -v "$1" >/dev/null || fail 4 "$1 is not on PATH; install $2"
}

main() {
    backend=$1
    shift
    here=$(cd "$(dirname "$0")" && pwd)
    patches=$(cd "$here/../patches" && pwd)
    tree='' build='' jobs='' tools=no rpc=no patch=yes dry=no
    while [ $# -gt 0 ]; do
        case $1 in
        --build | --jobs)
            [ $# -gt 1 ] || fail 2 "$1 needs a value"
            if [ "$1" = --build ]; then build=$2; else jobs=$2; fi
            shift
            ;;
        --tools) tools=yes ;;
        --rpc) rpc=yes ;;
        --no-patch) patch=no ;;
        --dry-run) dry=yes ;;
        -h | --help)
            usage
            exit 0
            ;;
        -*) fail 2 "$1 is no option; --help lists them" ;;
        *)
            [ -z "$tree" ] || fail 2 "one tree at a time: $tree, $1"
            tree=$1
            ;;
        esac
        shift
    done
    case $jobs in *[!0-9]* | 0) fail 2 "--jobs $jobs: a number is needed" ;; esac
    [ -n "$tree" ] || fail 2 "which tree? give a llama.cpp checkout"
    for file in CMakeLists.txt src/llama-context.cpp ggml/src/ggml.c; do
        [ -f "$tree/$file" ] || fail 3 "$tree is no llama.cpp tree: $file is missing"
    done
    tree=$(cd "$tree" && pwd)
    build=${build:-$tree/build-$backend}
    jobs=${jobs:-$(nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2)}

    if [ "$dry" = no ]; then
        need cmake "CMake, of your system or with pip"
        if [ "$backend" = cuda ]; then need nvcc "the CUDA toolkit, with its bin folder on PATH"; fi
        if [ "$backend" = vulkan ]; then need glslc "the Vulkan SDK, or the packages glslc and libvulkan-dev"; fi
    fi
    if [ "$patch" = yes ]; then
        need git "git, which applies the patches"
        put_patches_in
    fi

    rpath=\$ORIGIN
    if [ "$(uname -s)" = Darwin ]; then rpath=@loader_path; fi
    set -- -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON \
        -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF \
        -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF "-DCMAKE_INSTALL_RPATH=$rpath"
    if [ "$tools" = yes ]; then
        set -- "$@" -DLLAMA_BUILD_COMMON=ON -DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_SERVER=ON
        targets="llama mtmd llama-server llama-cli llama-completion llama-quantize llama-imatrix llama-perplexity"
        if [ "$rpc" = yes ]; then targets="$targets ggml-rpc-server"; fi
    else
        set -- "$@" -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_MTMD=ON
        targets="llama mtmd"
    fi
    case $backend in
    cpu) set -- "$@" -DGGML_METAL=OFF ;;
    cuda) set -- "$@" -DGGML_METAL=OFF -DGGML_CUDA=ON "-DCMAKE_CUDA_ARCHITECTURES=$(cuda_architectures)" ;;
    metal) set -- "$@" -DGGML_METAL=ON -DGGML_METAL_EMBED_LIBRARY=ON ;;
    vulkan) set -- "$@" -DGGML_METAL=OFF -DGGML_VULKAN=ON ;;
    esac
    if [ "$rpc" = yes ]; then set -- "$@" -DGGML_RPC=ON; fi
    if command -v ninja >/dev/null; then set -- -G Ninja "$@"; fi
    run cmake -S "$tree" -B "$build" "$@"
    # shellcheck disable=SC2086 # a list of targets
    run cmake --build "$build" --config Release -j "$jobs" --target $targets
    if [ "$dry" = no ]; then
        echo "built: $build/bin; LLAMA_CPP_LIB_PATH=$build/bin has llama-cpp-python use it" >&2
    fi
}

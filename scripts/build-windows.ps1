<#
.SYNOPSIS
Patches a llama.cpp checkout and builds it with MSVC, for the CPU or for NVIDIA cards.
.EXAMPLE
scripts\build-windows.ps1 -Tree llama.cpp -Backend cuda -Tools
.NOTES
Needs git, CMake and Visual Studio's C++ compiler; for CUDA its toolkit. The flags are those of `yarn-gguf build`.
#>
param(
    [Parameter(Mandatory = $true)][string]$Tree,
    [ValidateSet("cpu", "cuda")][string]$Backend = "cpu",
    [string]$Build = "",
    [switch]$Tools,
    [switch]$Rpc,
    [int]$Jobs = [Environment]::ProcessorCount,
    [switch]$NoPatch,
    [switch]$DryRun
)
$ErrorActionPreference = "Stop"

function Fail([int]$Status, [string]$Text) {
    [Console]::Error.WriteLine("error: $Text")
    exit $Status
}

foreach ($file in "CMakeLists.txt", "src/llama-context.cpp", "ggml/src/ggml.c") {
    if (-not (Test-Path (Join-Path $Tree $file))) { Fail 3 "$Tree is no llama.cpp tree: $file is missing" }
}
$Tree = (Resolve-Path $Tree).Path
if (-not $Build) { $Build = Join-Path $Tree "build-$Backend" }
$patches = Join-Path $PSScriptRoot "../patches"

# All patches of one release, each in its own text or that of the next newer one.
function Get-Patches([string[]]$Releases) {
    foreach ($name in Get-Content (Join-Path $patches "series")) {
        $found = Join-Path $patches $name
        foreach ($release in $Releases) {
            $own = Join-Path $patches "variants/$release/$name"
            if (Test-Path $own) { $found = $own }
        }
        (Resolve-Path $found).Path
    }
}

# Tries patches on copies of the files that they change; whether all of them fitted.
function Test-Patches([string]$Work, [string[]]$List, [string[]]$Options) {
    if (Test-Path $Work) { Remove-Item -Recurse -Force $Work }
    foreach ($patch in $List) {
        foreach ($line in Get-Content $patch) {
            if ($line -match "^--- a/(.+)$") {
                $source = Join-Path $Tree $Matches[1]
                $target = Join-Path $Work $Matches[1]
                if ((Test-Path $source) -and -not (Test-Path $target)) {
                    New-Item -ItemType Directory -Force (Split-Path $target) | Out-Null
                    Copy-Item $source $target
                }
            }
        }
    }
    Push-Location $Work
    $ErrorActionPreference = "Continue" # what git says of a patch that does not fit is no error of ours
    $env:GIT_CEILING_DIRECTORIES = Split-Path $Work
    try {
        foreach ($patch in $List) {
            & git apply @Options $patch 2>$null
            if ($LASTEXITCODE -ne 0) { return $false }
        }
        return $true
    } finally {
        Pop-Location
        Remove-Item Env:GIT_CEILING_DIRECTORIES
    }
}

function Install-Patches {
    $work = Join-Path ([IO.Path]::GetTempPath()) ([IO.Path]::GetRandomFileName())
    try {
        $releases = @(Get-ChildItem -Directory (Join-Path $patches "variants") |
                Sort-Object { [version]$_.Name } -Descending | ForEach-Object { $_.Name })
        for ($count = 0; $count -le $releases.Count; $count++) {
            $list = @(Get-Patches @($releases | Select-Object -First $count))
            $back = @($list); [array]::Reverse($back)
            if (Test-Patches $work $back @("--reverse")) { Write-Host "the patches are in"; return }
            if (Test-Patches $work $list @()) {
                if ($DryRun) {
                    foreach ($patch in $list) { "git -C '$Tree' apply '$patch'" }
                    return
                }
                Copy-Item -Recurse -Force (Join-Path $work "*") $Tree
                Write-Host "the patches were put in"
                return
            }
        }
        Fail 3 "${Tree}: the patches do not fit this revision; patches/UPSTREAM names those that they are for"
    } finally {
        if (Test-Path $work) { Remove-Item -Recurse -Force $work }
    }
}

# For CUDA: the cards that are here, else all current ones that the compiler knows.
function Get-CudaArchitectures {
    $found = @()
    if (Get-Command nvidia-smi -ErrorAction SilentlyContinue) {
        $found = @(& nvidia-smi --query-gpu=compute_cap --format=csv,noheader |
                ForEach-Object { [int]($_ -replace "[. ]", "") } | Sort-Object -Unique)
    }
    if (-not $found) {
        $found = @(75, 80, 86, 89, 90, 100, 120)
        if (Get-Command nvcc -ErrorAction SilentlyContinue) {
            $known = @(& nvcc --list-gpu-arch | ForEach-Object { [int]($_ -replace "compute_", "") })
            $found = @($found | Where-Object { $known -contains $_ })
        }
    }
    $real = @($found | Select-Object -SkipLast 1 | ForEach-Object { "$_-real" })
    return ($real + @("$($found[-1])")) -join ";"
}

if (-not $NoPatch) { Install-Patches }

$flags = @(
    "-DCMAKE_BUILD_TYPE=Release"
    "-DBUILD_SHARED_LIBS=ON"
    "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON"
    "-DLLAMA_BUILD_TESTS=OFF"
    "-DLLAMA_BUILD_EXAMPLES=OFF"
    "-DLLAMA_BUILD_APP=OFF"
    "-DLLAMA_BUILD_UI=OFF"
    "-DLLAMA_USE_PREBUILT_UI=OFF"
)
$targets = @("llama", "mtmd")
if ($Tools) {
    $flags += "-DLLAMA_BUILD_COMMON=ON", "-DLLAMA_BUILD_TOOLS=ON", "-DLLAMA_BUILD_SERVER=ON"
    $targets += "llama-server", "llama-cli", "llama-completion", "llama-quantize", "llama-imatrix", "llama-perplexity"
    if ($Rpc) { $targets += "ggml-rpc-server" }
} else {
    $flags += "-DLLAMA_BUILD_COMMON=OFF", "-DLLAMA_BUILD_TOOLS=OFF", "-DLLAMA_BUILD_SERVER=OFF", "-DLLAMA_BUILD_MTMD=ON"
}
$flags += "-DGGML_METAL=OFF"
if ($Backend -eq "cuda") { $flags += "-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=$(Get-CudaArchitectures)" }
if ($Rpc) { $flags += "-DGGML_RPC=ON" }

$configure = @("-S", $Tree, "-B", $Build) + $flags
$compile = @("--build", $Build, "--config", "Release", "-j", "$Jobs", "--target") + $targets
if ($DryRun) {
    foreach ($command in $configure, $compile) {
        "cmake " + (($command | ForEach-Object { if ($_ -match "[^\w./:=+\\-]") { "'$_'" } else { $_ } }) -join " ")
    }
    exit 0
}
foreach ($command in $configure, $compile) {
    & cmake @command
    if ($LASTEXITCODE -ne 0) { Fail 5 "cmake ended with exit status $LASTEXITCODE" }
}
Write-Host "built: $Build\bin\Release; LLAMA_CPP_LIB_PATH set to it has llama-cpp-python use it"

#!/usr/bin/env bash
# setup.sh GROUP... - installs what is missing for a group and says what it does.  Groups:
#   build   compiler, CMake, the libraries               (apt)
#   test    cmocka, valgrind, Python and light packages  (apt; PyPI, into .venv)
#   browser Chromium, for `make test-page`               (apt)
#   deb     what CPack calls to make Debian packages     (apt)
#   fuzz    clang with libFuzzer                         (apt)
#   clients the serving clients that people have, under .clients: vLLM's benchmark client, lm-eval, SGLang's benchmark (PyPI)
#   api     schemathesis, for `make test-api`               (PyPI, into .venv-api)
#   torch   PyTorch, for `make test-python`                 (PyPI, into .python-venv)
#   aarch64 cross compiler, qemu-user, arm64 libraries   (apt; the libraries are unpacked under build/aarch64-root)
# Nothing is touched when nothing is missing.  Needs root or sudo only when an apt package is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

build_packages=(gcc libc6-dev cmake make pkg-config libevent-dev libjansson-dev libseccomp-dev libsodium-dev libutf8proc-dev)
test_packages=(g++ libcmocka-dev python3 python3-venv valgrind)
browser_packages=(chromium)
deb_packages=(dpkg-dev fakeroot file)
fuzz_packages=(clang-14 libclang-rt-14-dev)
aarch64_packages=(gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)
aarch64_libraries=(libcmocka0 libcmocka-dev libevent-core-2.1-7 libevent-dev libjansson4 libjansson-dev libseccomp2 libseccomp-dev
    libsodium23 libsodium-dev libutf8proc2 libutf8proc-dev)

say() { printf 'setup: %s\n' "$*" >&2; }

install_apt() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || { say "error: these packages are missing and there is no root or sudo: ${missing[*]}"; exit 1; }
        as_root=(sudo)
    fi
    say "installing with apt: ${missing[*]}"
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

install_venv() {
    local stamp=.venv/requirements.stamp
    if [ -x .venv/bin/python ] && cmp -s tests/requirements.txt "$stamp"; then
        return
    fi
    say "making the virtual environment .venv for the tests: $(grep -v '^#' tests/requirements.txt | tr '\n' ' ')"
    /usr/bin/python3 -m venv --clear .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/requirements.txt
    cp tests/requirements.txt "$stamp"
}

# The wheel without CUDA's libraries is not on PyPI; numpy is what torch warns about when it is missing.
install_torch() {
    [ -x .python-venv/bin/python ] && .python-venv/bin/python -c 'import torch' 2>/dev/null && return
    say "making .python-venv with PyTorch (1 to 3 GB of downloads)"
    /usr/bin/python3 -m venv --clear .python-venv
    .python-venv/bin/python -m pip install --quiet --disable-pip-version-check torch numpy
}

# Of two large wheels only the clients are kept: vLLM's is one binary, SGLang's a folder of Python that needs no torch.
install_clients() {
    local stamp=.clients/stamp wanted="vllm 0.33.0, sglang 0.5.23, lm-eval 0.4.13, transformers 5.23.0" wheels
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && return
    say "bringing the clients under .clients: $wanted (about 1.5 GB of downloads)"
    rm -rf .clients && mkdir -p .clients/wheels && wheels=.clients/wheels
    /usr/bin/python3 -m venv .clients/venv
    .clients/venv/bin/python -m pip install --quiet --disable-pip-version-check "lm-eval[api]==0.4.13" transformers==5.23.0 aiohttp \
        msgspec numpy orjson requests tqdm pybase64 pillow datasets psutil pyzmq
    .clients/venv/bin/python -m pip download --quiet --disable-pip-version-check --no-deps -d $wheels vllm==0.33.0 sglang==0.5.23
    python3 - "$wheels" <<'PYTHON'
import glob, sys, zipfile
with zipfile.ZipFile(glob.glob(sys.argv[1] + "/vllm-*.whl")[0]) as wheel, open(".clients/vllm-rs", "wb") as out:
    out.write(wheel.read("vllm/vllm-rs"))
with zipfile.ZipFile(glob.glob(sys.argv[1] + "/sglang-*.whl")[0]) as wheel:
    wheel.extractall(".clients/sgl", [n for n in wheel.namelist() if n.startswith(("sglang/benchmark/", "sglang/srt/utils/"))])
PYTHON
    chmod +x .clients/vllm-rs
    rm -rf $wheels
    echo "$wanted" >"$stamp"
}

# In an environment of its own: it brings some forty packages that no other test uses.
install_api() {
    local stamp=.venv-api/stamp wanted="schemathesis 4.32.5"
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && return
    say "making .venv-api: $wanted"
    /usr/bin/python3 -m venv --clear .venv-api
    .venv-api/bin/python -m pip install --quiet --disable-pip-version-check "${wanted/ /==}"
    echo "$wanted" >"$stamp"
}

# The arm64 libraries are downloaded with lists of their own and unpacked, not installed: this machine's packages stay of one
# architecture.
unpack_aarch64_libraries() {
    local root=$PWD/build/aarch64-root stamp=${aarch64_libraries[*]} apt package
    [ -f "$root/.stamp" ] && [ "$(cat "$root/.stamp")" = "$stamp" ] && return
    say "unpacking arm64 packages under build/aarch64-root: $stamp"
    rm -rf "$root"
    mkdir -p "$root/apt/lists/partial" "$root/apt/cache/archives/partial" "$root/apt/packages"
    apt=(apt-get -qq -o "Dir::State::Lists=$root/apt/lists" -o "Dir::Cache=$root/apt/cache" -o "APT::Sandbox::User=$(id -un)"
        -o "APT::Architectures::=$(dpkg --print-architecture)" -o APT::Architectures::=arm64)
    "${apt[@]}" update
    (cd "$root/apt/packages" && "${apt[@]}" download "${aarch64_libraries[@]/%/:arm64}")
    for package in "$root"/apt/packages/*.deb; do
        dpkg-deb -x "$package" "$root"
    done
    rm -rf "$root/apt"
    echo "$stamp" >"$root/.stamp"
}

for group in "$@"; do
    case $group in
        build) install_apt "${build_packages[@]}" ;;
        test) install_apt "${test_packages[@]}"; install_venv ;;
        clients) install_apt python3 python3-venv; install_clients ;;
        torch) install_apt python3 python3-venv; install_torch ;;
        api) install_apt python3 python3-venv; install_api ;;
        browser) install_apt "${browser_packages[@]}" ;;
        deb) install_apt "${deb_packages[@]}" ;;
        fuzz) install_apt "${fuzz_packages[@]}" ;;
        aarch64)
            [ "$(uname -m)" != aarch64 ] || { say "error: this machine is an aarch64 itself; its own tests cover the rungs"; exit 1; }
            install_apt "${aarch64_packages[@]}"
            unpack_aarch64_libraries
            ;;
        *) say "error: unknown group '$group'; known: build test browser deb fuzz clients api torch aarch64"; exit 2 ;;
    esac
done

#!/usr/bin/env bash
# setup.sh GROUP... - installs what is missing for a group and says what it does.  Groups:
#   build   compiler, CMake, the three libraries         (apt)
#   test    cmocka, Python and light packages in .venv   (apt, PyPI)
#   fuzz    clang with libFuzzer                         (apt)
# Nothing is touched when nothing is missing.  Needs root or sudo only when an apt package is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

build_packages=(gcc libc6-dev cmake make pkg-config libjansson-dev libutf8proc-dev)
test_packages=(g++ libcmocka-dev python3 python3-venv)
fuzz_packages=(clang-14 libclang-rt-14-dev)

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

for group in "$@"; do
    case $group in
        build) install_apt "${build_packages[@]}" ;;
        test) install_apt "${test_packages[@]}"; install_venv ;;
        fuzz) install_apt "${fuzz_packages[@]}" ;;
        *) say "error: unknown group '$group'; known: build test fuzz"; exit 2 ;;
    esac
done

#!/bin/sh
# Builds the client against the installed tree (find_package, and by hand with pkg-config) and against the sources
# (add_subdirectory), and lets each generate text.   run.sh SOURCE BUILD TINY_MODEL
set -eu
source=$1 build=$2 model=$3
work=$build/consumer
rm -rf "$work"
mkdir -p "$work"
generator=$(command -v ninja >/dev/null 2>&1 && echo "-GNinja" || echo "-GUnix Makefiles")
launcher="-DINFER_NO_LAUNCHER=1" cuda_launcher="-DINFER_NO_CUDA_LAUNCHER=1"
[ -z "${CCACHE_DISABLE:-}" ] && ccache=$(command -v ccache) || ccache=""
if [ -n "$ccache" ]; then
  launcher="-DCMAKE_CXX_COMPILER_LAUNCHER=ccache" cuda_launcher="-DCMAKE_CUDA_COMPILER_LAUNCHER=ccache"
fi

echo "== installed tree, find_package"
cmake --install "$build" --prefix "$work/prefix" >"$work/install.log"
cmake "$generator" -S "$source/tests/consumer" -B "$work/installed" -DCMAKE_PREFIX_PATH="$work/prefix" >"$work/configure.log"
cmake --build "$work/installed" >"$work/build.log" || { cat "$work/build.log"; exit 1; }
"$work/installed/consumer" "$model"

echo "== installed tree, pkg-config"
PKG_CONFIG_PATH=$(dirname "$(find "$work/prefix" -name infer.pc)")
export PKG_CONFIG_PATH
# shellcheck disable=SC2046
c++ -std=c++20 "$source/tests/consumer/main.cpp" -o "$work/by_hand" $(pkg-config --cflags --libs --static infer)
"$work/by_hand" "$model"

echo "== sources, add_subdirectory"
# Unoptimised, in groups of files: what is tested is the build of a parent project, not speed.
# Kernels are compiled as they were for the tested build, so that ccache knows them; without it they are left out, for
# they would take longer than all else.
setting() { sed -n "s/^$1:[A-Z]*=//p" "$build/CMakeCache.txt"; }
cuda=$(setting INFER_CUDA)
if [ -z "$ccache" ] && [ "$cuda" != OFF ] && [ "$cuda" != 0 ]; then
  echo "(without CUDA: there is no ccache)" && cuda=OFF
fi
cmake "$generator" -S "$source/tests/consumer" -B "$work/sources" -DINFER_SOURCE="$source" -DCMAKE_BUILD_TYPE=Debug \
  -DINFER_UNITY=ON -DCMAKE_CXX_FLAGS_DEBUG=-O0 -DCMAKE_CUDA_FLAGS_DEBUG=-O3 -DINFER_CUDA="$cuda" \
  -DINFER_CUDA_ARCHS="$(setting INFER_CUDA_ARCHS)" "$launcher" "$cuda_launcher" >"$work/configure.log"
cmake --build "$work/sources" -j2 >"$work/build.log" || { cat "$work/build.log"; exit 1; }
"$work/sources/consumer" "$model"

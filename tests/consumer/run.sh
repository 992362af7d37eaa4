#!/bin/sh
# Builds the client against the installed tree (find_package, and by hand with pkg-config) and against the sources
# (add_subdirectory), and lets each generate text.   run.sh SOURCE BUILD TINY_MODEL
set -eu
source=$1 build=$2 model=$3
work=$build/consumer
rm -rf "$work"
mkdir -p "$work"
setting() { sed -n "s/^$1:[A-Z]*=//p" "$build/CMakeCache.txt"; }
generator=$(setting CMAKE_GENERATOR)

echo "== installed tree, find_package"
cmake --install "$build" --prefix "$work/prefix" >"$work/install.log"
cmake -G "$generator" -S "$source/tests/consumer" -B "$work/installed" -DCMAKE_PREFIX_PATH="$work/prefix" >"$work/configure.log"
cmake --build "$work/installed" >"$work/build.log" || { cat "$work/build.log"; exit 1; }
"$work/installed/consumer" "$model"

echo "== installed tree, pkg-config"
PKG_CONFIG_PATH=$(dirname "$(find "$work/prefix" -name infer.pc)")
export PKG_CONFIG_PATH
# shellcheck disable=SC2046
c++ -std=c++20 "$source/tests/consumer/main.cpp" -o "$work/by_hand" $(pkg-config --cflags --libs --static infer)
"$work/by_hand" "$model"

echo "== sources, add_subdirectory"
# A parent project with the settings of the tested build compiles the library by the same commands, folders aside. Where
# they are the same, so would be the objects: the archive that is there takes their place, and only the client is compiled.
build_type=$(setting CMAKE_BUILD_TYPE)
set -- "-DINFER_SOURCE=$source" "-DCMAKE_BUILD_TYPE=${build_type:-Release}"
for name in CMAKE_CXX_COMPILER CMAKE_CXX_FLAGS CMAKE_CXX_COMPILER_LAUNCHER CMAKE_CUDA_COMPILER_LAUNCHER \
  INFER_UNITY INFER_CUDA INFER_CUDA_ARCHS; do
  set -- "$@" "-D$name=$(setting $name)"
done
cmake -G "$generator" -S "$source/tests/consumer" -B "$work/sources" "$@" >"$work/configure.log"
if [ "$generator" = Ninja ]; then
  commands() { # folder archive
    ninja -C "$1" -t commands "$2" | sed "s|$1/||g; s|infer-build/||g"
  }
  commands "$build" libinfer.a >"$work/commands.tested"
  commands "$work/sources" infer-build/libinfer.a >"$work/commands.parent"
  test -s "$work/commands.tested"
  diff "$work/commands.tested" "$work/commands.parent" >"$work/commands.diff" || {
    echo "the library is compiled by other commands:" && head -c 4000 "$work/commands.diff"
    exit 1
  }
  cp "$build/libinfer.a" "$work/sources/infer-build/"
  ninja -C "$work/sources" -t commands -s CMakeFiles/consumer.dir/main.cpp.o consumer >"$work/build.sh"
  (cd "$work/sources" && sh -e ../build.sh)
else  # make cannot be asked for its commands
  cmake --build "$work/sources" -j2 >"$work/build.log" || { cat "$work/build.log"; exit 1; }
fi
"$work/sources/consumer" "$model"

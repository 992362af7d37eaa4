#!/bin/sh
# The layers go quant -> kernels -> models -> runtime -> tools: a folder includes only itself and folders to its left, tools
# include nothing of the library but its public header, backends do not know each other, CUDA's headers stay in
# kernels/cuda, the library prints nothing, and the top level holds the agreed entries only.
set -u
cd "$(dirname "$0")/.." || exit 2
status=0
complain() {
  echo "$1"
  status=1
}
search() { # pattern folder...: in everything that is compiled
  pattern=$1
  shift
  grep -rnE "$pattern" "$@" --include='*.h' --include='*.cpp' --include='*.cu' --include='*.cuh'
}
left=""
for folder in quant kernels models runtime tools; do
  for other in quant kernels models runtime tools tests; do
    case " $left $folder " in *" $other "*) continue ;; esac
    hits=$(search "#include [\"<]$other/" "$folder")
    [ -z "$hits" ] || complain "$folder includes $other, which lies to its right:
$hits"
  done
  left="$left $folder"
done
hits=$(search '#include "(quant|kernels|models|runtime)/' tools)
[ -z "$hits" ] || complain "tools use more than the public header:
$hits"
for folder in kernels/*/; do
  backend=$(basename "$folder")
  hits=$(search '#include [<"]kernels/[a-z0-9_]+/' "$folder" | grep -v "#include [<\"]kernels/\($backend\|include\)/")
  # The stand-in for CUDA implements the headers of what it stands for.
  [ "$backend" != none ] || hits=$(echo "$hits" | grep -vE '#include "kernels/cuda/(cuda_row|limits|sizes)\.h"')
  [ -z "$hits" ] || complain "a backend includes another one:
$hits"
done
hits=$(search '#include [<"](cuda|cublas|cooperative_groups|nvtx|mma|cub/)' quant kernels models runtime tools | grep -v '^kernels/cuda/')
[ -z "$hits" ] || complain "headers of CUDA outside kernels/cuda:
$hits"
hits=$(find quant kernels models runtime tools \( -name '*.cu' -o -name '*.cuh' \) ! -path 'kernels/cuda/*')
[ -z "$hits" ] || complain "device code outside kernels/cuda:
$hits"
hits=$(search '\b(abort|_?exit|_Exit|quick_exit|terminate|v?f?printf|f?puts|f?putc|putchar|perror|fmt::print)\(|std::(cout|cerr|clog)\b' \
  quant kernels models runtime | grep -v '^[^:]*:[0-9]*: *//')
[ -z "$hits" ] || complain "library code prints or ends the process:
$hits"
for entry in *; do
  case $entry in
    Makefile | CMakeLists.txt | runtime | kernels | quant | tools | tests | models | README.md | LICENSE | build* | infer) ;;
    *) complain "unexpected entry at the top level: $entry" ;;
  esac
done
[ $status = 0 ] && echo "layers are as they should be"
exit $status

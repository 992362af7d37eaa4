#!/bin/sh
# The layers go quant -> kernels -> models -> runtime -> tools: a folder includes only itself and folders to its left, tools
# include nothing of the library but its public header, and the top level holds the agreed entries only.
set -u
cd "$(dirname "$0")/.." || exit 2
status=0
complain() {
  echo "$1"
  status=1
}
left=""
for folder in quant kernels models runtime tools; do
  for other in quant kernels models runtime tools tests; do
    case " $left $folder " in *" $other "*) continue ;; esac
    hits=$(grep -rnE "#include [\"<]$other/" "$folder" --include='*.h' --include='*.cpp' --include='*.cu' --include='*.cuh')
    [ -z "$hits" ] || complain "$folder includes $other, which lies to its right:
$hits"
  done
  left="$left $folder"
done
hits=$(grep -rnE '#include "(quant|kernels|models|runtime)/' tools --include='*.h' --include='*.cpp')
[ -z "$hits" ] || complain "tools use more than the public header:
$hits"
hits=$(grep -rnE '\b(abort|exit|printf|puts|fprintf|fmt::print|std::cout|std::cerr)\(' quant kernels models runtime --include='*.h' --include='*.cpp' | grep -v '^[^:]*:[0-9]*: *//')
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

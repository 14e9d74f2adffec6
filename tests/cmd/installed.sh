#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs into a temporary prefix and builds docs/example with nothing but pkg-config, against the
# shared and against the static library. INST_WERROR: empty, or -Werror.
set -euo pipefail
cmake=$1 build=$2 source=$3 cc=$4 instinfer=$5
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"$cmake" --install "$build" --prefix "$dir/prefix" >/dev/null
PKG_CONFIG_PATH=$(dirname "$(find "$dir/prefix" -name instinfer.pc)")
export PKG_CONFIG_PATH
"$instinfer" synth --layers 2 --width 64 --heads 4 --kv-heads 2 --head-dim 16 --ffn 64 \
  --type F16 -o "$dir/model.gguf"
# shellcheck disable=SC2046
"$cc" -Wall -Wextra ${INST_WERROR:-} -o "$dir/shared" "$source/docs/example/generate.c" \
  $(pkg-config --cflags --libs instinfer)
# shellcheck disable=SC2046
"$cc" -Wall -Wextra ${INST_WERROR:-} -o "$dir/static" "$source/docs/example/generate.c" \
  $(pkg-config --cflags instinfer) "$(pkg-config --variable=libdir instinfer)/libinstinfer.a" \
  $(pkg-config --libs --static instinfer | sed 's/-linstinfer//')
LD_LIBRARY_PATH=$(pkg-config --variable=libdir instinfer) "$dir/shared" "$dir/model.gguf" hello >"$dir/a"
"$dir/static" "$dir/model.gguf" hello >"$dir/b"
"$instinfer" run -m "$dir/model.gguf" -p hello -n 32 --temp 0 --kv ram:16M >"$dir/c"
test -s "$dir/a"
cmp "$dir/a" "$dir/b"
# The example prints raw bytes and a newline; both programs must agree on valid text.
python3 - "$dir" <<'PY'
import sys
d = sys.argv[1]
a = open(d + "/a", "rb").read()[:-1].decode("utf-8", "replace")
assert a == open(d + "/c", "rb").read().decode("utf-8"), a
PY
# Nothing but the public functions leaves the shared library.
lib=$(pkg-config --variable=libdir instinfer)/libinstinfer.so
if nm -D --defined-only "$lib" | awk '$2 ~ /[TDBR]/ {print $3}' | grep -v '^inst_'; then
  echo "symbols above are exported but not public" >&2
  exit 1
fi

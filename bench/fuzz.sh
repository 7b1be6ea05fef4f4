#!/usr/bin/env bash
# fuzz.sh TIME [SECONDS]   runs every fuzz target of the module for TIME, one after the other. With SECONDS it ends when they are over, and
#                          begins at another target each day, so that all have their turn.
# fuzz.sh --keep           puts what earlier runs found worth keeping into testdata/fuzz of each package: the five smallest inputs
#                          of each target, of at most 2 KiB. `make test` runs them ever after.
set -eu
cd "$(dirname "$0")/.."
targets=()
for dir in $(git grep -l '^func Fuzz' -- '*_test.go' | xargs -n1 dirname | sort -u); do
  for target in $(grep -ho '^func Fuzz[A-Za-z0-9_]*' "$dir"/*_test.go | sed 's/func //' | sort -u); do targets+=("$dir $target"); done
done
if [ "$1" = --keep ]; then
  cache=$(go env GOCACHE)/fuzz/$(go list -m)
  for t in "${targets[@]}"; do
    read -r dir target <<<"$t"
    [ -d "$cache/$dir/$target" ] || continue
    mkdir -p "$dir/testdata/fuzz/$target"
    find "$cache/$dir/$target" -type f -size -2049c -printf '%s %p\n' | sort -n | head -n 5 | while read -r _ file; do cp "$file" "$dir/testdata/fuzz/$target/"; done
  done
  exit 0
fi
n=${#targets[@]} ran=0 first=0
[ $# -lt 2 ] || first=$(($(date +%s) / 86400 * 13 % n))
SECONDS=0
for ((i = 0; i < n; i++)); do
  if [ $# -ge 2 ] && [ "$SECONDS" -ge "$2" ]; then break; fi
  read -r dir target <<<"${targets[$(((first + i) % n))]}"
  echo "== $dir $target"
  go test "./$dir" -run '^$' -fuzz "^$target\$" -fuzztime "$1"
  ran=$((ran + 1))
done
echo "fuzz.sh: $ran of $n targets, $1 each, in ${SECONDS}s"

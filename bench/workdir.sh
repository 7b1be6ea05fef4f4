# shellcheck shell=bash
# workdir.sh   is sourced by the others: W is the WORKDIR that was given, or a new directory, which tidy takes away in the end.
if [ -n "${1:-}" ]; then W=$1 OWN=; else W=$(mktemp -d /tmp/crossfade-bench.XXXXXX) OWN=$W; fi
mkdir -p "$W"; chmod 755 "$W"
tidy() { # EXITCODE   What failed stays to be looked at.
  if [ -z "$OWN" ]; then return; fi
  if [ "$1" = 0 ]; then rm -rf "$OWN"; else echo "$0: failed; its logs are in $OWN" >&2; fi
}

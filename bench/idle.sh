#!/usr/bin/env bash
# idle.sh [WORKDIR]   what connections cost that do nothing: resident memory of the real program with N (10000) idle SMTP
# connections in clear, and with as many under TLS (TLS=1). The goal is 400 MB for ten thousand in clear.
#
# Needs Debian's openssl and as many open files as connections (ulimit -n, hard), for either side.
set -eu
cd "$(dirname "$0")/.."
ROOT=$PWD
# shellcheck source=bench/workdir.sh
. bench/workdir.sh
N=${N:-10000}; SMTP=${CX_SMTP:-12725}; ADMIN=${CX_ADMIN:-12726}
ulimit -n "$(ulimit -Hn)"
go build -o "$W/crossfade" ./cmd/crossfade
go build -o "$W/smtphold" ./bench/smtphold/main.go
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=relay.bench.test -keyout "$W/key.pem" -out "$W/cert.pem" 2>/dev/null
cat > "$W/crossfade.yaml" <<C
hostname: relay.bench.test
domains: [bench.test]
store: ./data
smtp:
  listen: ["127.0.0.1:$SMTP"]
  tls: {cert: ./cert.pem, key: ./key.pem}
  max_connections: $((N + N / 2))
  max_connections_per_ip: 0
  limits: {exempt: []}
admin: {listen: "127.0.0.1:$ADMIN", token_file: ./admin.token}
log: {level: warn}
backends: {old: {smtp: "smtp+insecure://127.0.0.1:1"}, new: {smtp: "smtp+insecure://127.0.0.1:2"}}
queue: {min_free: 0}
C
PID= HOLD=
trap 'code=$?; set +e; for p in $HOLD $PID; do kill "$p" 2>/dev/null || true; done; wait; tidy $code' EXIT
mem() { awk '/VmRSS/ {print $2}' "/proc/$PID/status"; }
measure() { # MODE
  rm -rf "$W/data"
  "$W/crossfade" serve -c "$W/crossfade.yaml" > "$W/log" 2>&1 & PID=$!
  for _ in $(seq 100); do "$W/crossfade" health -c "$W/crossfade.yaml" >/dev/null 2>&1 && break; sleep 0.1; done
  local before; before=$(mem)
  "$W/smtphold" -mode "$1" -n "$N" -c 32 -addr 127.0.0.1:$SMTP > "$W/hold.$1" & HOLD=$!
  for _ in $(seq 600); do grep -q OPEN "$W/hold.$1" && break; sleep 0.5; done
  cat "$W/hold.$1"
  grep -q "OPEN $N of $N " "$W/hold.$1" || { echo "idle.sh: not all connections are open: nothing was measured" >&2; exit 1; }
  local at; at=$(mem)
  sleep 5
  awk -v b="$before" -v a="$at" -v l="$(mem)" -v n="$N" -v mode="$1" -v h="$(awk '/VmHWM/ {print $2}' "/proc/$PID/status")" 'BEGIN {
    printf "IDLE %s: %d connections, resident %.0f MB (%.0f before, %.0f at once, peak %.0f), %.1f kB each\n", mode, n, l/1000, b/1000, a/1000, h/1000, (l-b)/n }'
  kill "$HOLD"; wait "$HOLD" || true; HOLD=
  kill "$PID"; wait "$PID" || true; PID=
}
measure idle
[ "${TLS:-0}" = 0 ] || measure tls

#!/usr/bin/env bash
# memory.sh [WORKDIR]   resident memory of Crossfade: at 50 sessions, with ten messages of 50 MB in flight, and with
# QUEUED (1000000) messages in the queue, which it also counts after a restart.
#
# Needs root, Debian and ../shared/bench. The long queue takes some minutes and 2 GB of disk.
set -eu
cd "$(dirname "$0")/.."
ROOT=$PWD; SHARED=$ROOT/../shared/bench
[ -d "$SHARED" ] || { echo "bench: $SHARED is not there" >&2; exit 1; }
# shellcheck source=bench/workdir.sh
. bench/workdir.sh
QUEUED=${QUEUED:-1000000}; CX_SMTP=${CX_SMTP:-12725}; CX_ADMIN=${CX_ADMIN:-12726}
# shellcheck source=/dev/null
. "$SHARED/lib.sh"
need postfix; build_tools
# A sink left behind would take messages from the next run's: they share the port.
trap 'code=$?; set +e; stop_sinks; [ -z "${PID:-}" ] || kill "$PID" 2>/dev/null || true; wait; tidy $code' EXIT
start_sinks
mkdir -p "$W/cx"; rm -rf "$W/cx/data"
conf() { # PORT-OLD PORT-NEW
  cat > "$W/cx/crossfade.yaml" <<C
hostname: relay.bench.test
domains: [bench.test]
store: ./data
smtp: {listen: ["127.0.0.1:$CX_SMTP"], max_connections_per_ip: 0, max_message_size: 60MiB}
admin: {listen: "127.0.0.1:$CX_ADMIN", token_file: ./admin.token}
log: {level: warn}
backends:
  old: {smtp: "smtp+insecure://127.0.0.1:$1"}
  new: {smtp: "smtp+insecure://127.0.0.1:$2"}
routing: {unknown: old}
queue: {min_free: 0}
C
}
start() { "$ROOT/bin/crossfade" serve -c "$W/cx/crossfade.yaml" >> "$W/cx/log" 2>&1 & PID=$!
  for _ in $(seq 600); do "$ROOT/bin/crossfade" health -c "$W/cx/crossfade.yaml" >/dev/null 2>&1 && return; sleep 0.1; done
  echo "crossfade did not start"; tail "$W/cx/log"; exit 1; }
stop() { kill "$PID"; wait "$PID" || true; PID=; }
mem() { awk -v what="$1" '/VmHWM/ {h=$2} /VmRSS/ {r=$2} END {printf "MEMORY %-55s resident %4.0f MB, peak %4.0f MB\n", what, r/1000, h/1000}' "/proc/$PID/status"; }

conf "$SINK_OLD" "$SINK_NEW"; start
/usr/sbin/smtp-source -N -s 50 -m 20000 -l 4096 -f sender@load.test -t u@bench.test 127.0.0.1:$CX_SMTP
mem "50 sessions, 20,000 messages of 4 KiB"; stop
start
/usr/sbin/smtp-source -N -s 10 -m 30 -l 50000000 -f sender@load.test -t u@bench.test 127.0.0.1:$CX_SMTP
mem "ten messages of 50 MB at once, 30 in all"; sleep 5; stop

conf 1 2; start    # nobody listens there: mail stays
T0=$(date +%s)
"$BIN/smtpload" -addr 127.0.0.1:$CX_SMTP -n "$QUEUED" -c 50 -size 1024 -per 0 -pipeline
echo "queued $QUEUED in $(($(date +%s) - T0)) s"
mem "$QUEUED queued messages"; stop
T0=$(date +%s); start
echo "restarted in $(($(date +%s) - T0)) s; $("$ROOT/bin/crossfade" queue list --limit 1 --json -c "$W/cx/crossfade.yaml" | wc -c) bytes for the first page"
mem "$QUEUED queued messages, after a restart"; stop; stop_sinks
du -sh "$W/cx/data" | sed 's/^/store on disk: /'
rm -rf "$W/cx/data"

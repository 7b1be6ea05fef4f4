#!/usr/bin/env bash
# smtp.sh [WORKDIR]   Crossfade and Postfix as relays in front of the same two sinks, alternately, in one run.
#
# Needs root, Debian, cgroup v1 and ../shared/bench; nothing else may run on the machine meanwhile.
# ROUNDS (2) rounds; SESS ("10 50") sessions; N (12000) messages of 4 KiB a run. Prints one line a run, then a table of
# medians. Both sync before they answer 250; both know the same table of users (odd to old, even to new).
set -eu
cd "$(dirname "$0")/.."
ROOT=$PWD
SHARED=$ROOT/../shared/bench
[ -d "$SHARED" ] || { echo "bench: $SHARED is not there: nothing to compare with" >&2; exit 1; }
# shellcheck source=bench/workdir.sh
. bench/workdir.sh
ROUNDS=${ROUNDS:-2}; SESS=${SESS:-10 50}; N=${N:-12000}; PEER=${PEER:-1}
CX_SMTP=${CX_SMTP:-12725}; CX_ADMIN=${CX_ADMIN:-12726}
# shellcheck source=/dev/null
. "$SHARED/lib.sh"
need postfix postfix-lmdb postfix-cdb; build_tools
# A sink left behind would take messages from the next run's: they share the port.
trap 'code=$?; set +e; stop_sinks; stop_crossfade; tidy $code' EXIT

start_crossfade() {
  rm -rf "$W/cx"; mkdir -p "$W/cx"
  cat > "$W/cx/crossfade.yaml" <<C
hostname: relay.bench.test
domains: [bench.test]
store: ./data
smtp: {listen: ["127.0.0.1:$CX_SMTP"], max_connections_per_ip: 0}
admin: {listen: "127.0.0.1:$CX_ADMIN", token_file: ./admin.token}
log: {level: ${LOGLEVEL:-info}}
backends:
  old: {smtp: "smtp+insecure://127.0.0.1:$SINK_OLD"}
  new: {smtp: "smtp+insecure://127.0.0.1:$SINK_NEW"}
queue: {min_free: 0}
C
  python3 - > "$W/cx/users.csv" <<'Y'
print("address,state")
for i in range(0, 30001): print(f"{i}u@bench.test,{'new' if i % 2 == 0 else 'old'}")
for i in range(1, 1001): print(f"u{i}@bench.test,{'new' if i % 2 == 0 else 'old'}")
Y
  "$BIN/cgrun" exec bench_crossfade "$ROOT/bin/crossfade" serve -c "$W/cx/crossfade.yaml" > "$W/cx/log" 2>&1 & CXPID=$!
  for _ in $(seq 100); do "$ROOT/bin/crossfade" health -c "$W/cx/crossfade.yaml" >/dev/null 2>&1 && break; sleep 0.1; done
  "$ROOT/bin/crossfade" user import "$W/cx/users.csv" -c "$W/cx/crossfade.yaml" >/dev/null || { tail "$W/cx/log"; exit 1; }
}
stop_crossfade() { [ -z "${CXPID:-}" ] || { kill "$CXPID" 2>/dev/null || true; wait "$CXPID" 2>/dev/null || true; CXPID=; }; }

crossfade_runs() { # ROUND
  start_sinks; start_crossfade
  "$BIN/smtpload" -addr 127.0.0.1:$CX_SMTP -n 500 -c 10 >/dev/null; sleep 2
  for s in $SESS; do
    for reuse in "" "-d"; do
      reset_sinks
      meas -sinks "$(SINKFILES)" -expect "$N" -mta bench_crossfade -sinkcg bench_sink -queue "$W/nothing" \
        -label "crossfade size=4096 sess=$s reuse=${reuse:-no} run=$1" -timeout 120s -- \
        /usr/sbin/smtp-source $reuse -N -s "$s" -m "$N" -l 4096 -f sender@load.test -t u@bench.test 127.0.0.1:$CX_SMTP
    done
    reset_sinks
    meas -sinks "$(SINKFILES)" -expect "$N" -mta bench_crossfade -sinkcg bench_sink -queue "$W/nothing" \
      -label "crossfade-lat size=4096 sess=$s reuse=no run=$1" -- "$BIN/smtpload" -addr 127.0.0.1:$CX_SMTP -n "$N" -c "$s" -size 4096 -per 1
  done
  awk '/VmHWM|VmRSS/ {print "crossfade memory:", $0}' "/proc/$CXPID/status"
  stop_crossfade; stop_sinks
}
postfix_runs() { # ROUND
  for reuse in "" "-d"; do
    LAT=$([ -z "$reuse" ] && echo 1 || echo) RUNS=1 SIZES=4096 SESS="$SESS" N4=$N SSOPT=$reuse bash "$SHARED/run-postfix.sh" "$W" |
      sed "s/\(postfix size=[0-9]* sess=[0-9]*\) /\1 reuse=${reuse:-no} /; s/run=1/run=$1/"
  done
}

OUT=$W/results.txt; : > "$OUT"
set -o pipefail # tee hides no failure
for r in $(seq "$ROUNDS"); do
  crossfade_runs "$r" 2>&1 | tee -a "$OUT"
  [ "$PEER" = 1 ] && postfix_runs "$r" 2>&1 | tee -a "$OUT"
done
echo; python3 "$ROOT/bench/table.py" "$OUT"

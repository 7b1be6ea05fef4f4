#!/usr/bin/env bash
# authn.sh [WORKDIR]   What SPF, DKIM and DMARC cost: messages accepted per second with the check and without, alternately, in one run.
#
# Needs root, Debian with postfix (smtp-source, smtp-sink), nsd and python3-dkim, cgroup v1 and ../shared/bench; nothing else may run on the
# machine meanwhile. ROUNDS (3) rounds; SESS ("10 50") sessions; N (20000) messages of 4 KiB with one RSA-2048 signature a run. The resolver is
# an NSD on this machine, and the cache is warm. Prints one line a run, then medians and the share that the check takes (goal: 35 % at most), of
# what is accepted and of what comes through to the backend: while a short run is accepted, deliveries lag behind.
set -eu
cd "$(dirname "$0")/.."
ROOT=$PWD
SHARED=$ROOT/../shared/bench
[ -d "$SHARED" ] || SHARED=$ROOT/../../shared/bench
[ -d "$SHARED" ] || { echo "bench: $SHARED is not there" >&2; exit 1; }
# shellcheck source=bench/workdir.sh
. bench/workdir.sh
ROUNDS=${ROUNDS:-3}; SESS=${SESS:-10 50}; N=${N:-20000}
CX_SMTP=${CX_SMTP:-12735}; CX_ADMIN=${CX_ADMIN:-12736}; DNS=${DNS:-12753}
# shellcheck source=/dev/null
. "$SHARED/lib.sh"
# DIRTY=1 takes runs beside others' work too, once each: then only the CPU time of a message says something.
[ -z "${DIRTY:-}" ] || meas() { "$BIN/smtpmeas" "$@" || true; }
need postfix nsd python3-dkim openssl; build_tools
trap 'code=$?; set +e; stop_nsd; stop_sinks; stop_crossfade; tidy $code' EXIT
[ -x "$ROOT/bin/crossfade" ] || make -s build

start_nsd() {
  rm -rf "$W/nsd"; mkdir -p "$W/nsd"
  openssl genrsa -traditional -out "$W/nsd/key.pem" 2048 2>/dev/null
  local p; p=$(openssl rsa -in "$W/nsd/key.pem" -pubout -outform DER 2>/dev/null | base64 -w0)
  cat > "$W/nsd/load.test.zone" <<Z
\$TTL 3600
@ SOA ns1 hostmaster 1 3600 600 604800 3600
@ NS ns1
ns1 A 127.0.0.1
@ TXT "v=spf1 mx ip4:192.0.2.0/24 ip4:127.0.0.1 -all"
@ MX 10 ns1
_dmarc TXT "v=DMARC1; p=reject"
sel._domainkey TXT "v=DKIM1; k=rsa; p=${p:0:200}" "${p:200}"
Z
  cat > "$W/nsd/nsd.conf" <<C
server:
  ip-address: 127.0.0.1
  port: $DNS
  do-ip6: no
  server-count: 1
  username: ""
  chroot: ""
  database: ""
  pidfile: ""
  zonesdir: "$W/nsd"
  zonelistfile: "$W/nsd/zone.list"
  xfrdfile: "$W/nsd/xfrd.state"
  xfrdir: "$W/nsd"
  rrl-ratelimit: 0
remote-control:
  control-enable: no
zone:
  name: load.test
  zonefile: load.test.zone
C
  /usr/sbin/nsd -d -c "$W/nsd/nsd.conf" > "$W/nsd/log" 2>&1 & NSDPID=$!
  sleep 1
  kill -0 "$NSDPID" || { echo "nsd does not run: $(tail -1 "$W/nsd/log")" >&2; exit 1; }
  { printf 'From: Sender <sender@load.test>\r\nTo: u@bench.test\r\nSubject: a message of four kilobytes\r\nDate: Fri, 11 Jul 2025 21:00:37 -0700\r\nMessage-ID: <1@load.test>\r\n\r\n'
    for _ in $(seq 46); do printf 'The quick brown fox jumps over the lazy dog, and the dog does not mind much.\r\n'; done; } |
    dkimsign sel load.test "$W/nsd/key.pem" | tr -d '\r' > "$W/signed.eml"
}
stop_nsd() { [ -z "${NSDPID:-}" ] || { kill "$NSDPID" 2>/dev/null || true; wait "$NSDPID" 2>/dev/null || true; NSDPID=; }; }

start_crossfade() { # true|false
  rm -rf "$W/cx"; mkdir -p "$W/cx"
  cat > "$W/cx/crossfade.yaml" <<C
hostname: relay.bench.test
domains: [bench.test]
store: ./data
smtp: {listen: ["127.0.0.1:$CX_SMTP"], max_connections_per_ip: 0, resolvers: ["127.0.0.1:$DNS"], authentication: {verify: $1}}
admin: {listen: "127.0.0.1:$CX_ADMIN", token_file: ./admin.token}
log: {level: ${LOGLEVEL:-info}}
backends:
  old: {smtp: "smtp+insecure://127.0.0.1:$SINK_OLD"}
  new: {smtp: "smtp+insecure://127.0.0.1:$SINK_NEW"}
routing: {unknown: old}
queue: {min_free: 0}
C
  "$BIN/cgrun" exec bench_crossfade "$ROOT/bin/crossfade" serve -c "$W/cx/crossfade.yaml" > "$W/cx/log" 2>&1 & CXPID=$!
  for _ in $(seq 100); do "$ROOT/bin/crossfade" health -c "$W/cx/crossfade.yaml" >/dev/null 2>&1 && break; sleep 0.1; done
}
stop_crossfade() { [ -z "${CXPID:-}" ] || { kill "$CXPID" 2>/dev/null || true; wait "$CXPID" 2>/dev/null || true; CXPID=; }; }

runs() { # ROUND true|false
  start_sinks; start_crossfade "$2"
  /usr/sbin/smtp-source -N -s 10 -m 300 -F "$W/signed.eml" -f sender@load.test -t u@bench.test "127.0.0.1:$CX_SMTP"; sleep 1
  for s in $SESS; do
    for reuse in "" "-d"; do
      reset_sinks
      meas -sinks "$(SINKFILES)" -expect "$N" -mta bench_crossfade -sinkcg bench_sink -queue "$W/nothing" \
        -label "verify=$2 sess=$s reuse=${reuse:-no} run=$1" -timeout 120s -- \
        /usr/sbin/smtp-source $reuse -N -s "$s" -m "$N" -F "$W/signed.eml" -f sender@load.test -t u@bench.test "127.0.0.1:$CX_SMTP"
    done
  done
  if [ "$2" = true ]; then
    curl -s "http://127.0.0.1:$CX_ADMIN/metrics" | grep -E '^crossfade_(authentication_results_total.*(pass|fail|temperror)|resolver_lookups_total)' || true
  fi
  stop_crossfade; stop_sinks
}

OUT=$W/results.txt; : > "$OUT"
set -o pipefail # tee hides no failure
start_nsd
for r in $(seq "$ROUNDS"); do
  runs "$r" false 2>&1 | tee -a "$OUT"
  runs "$r" true 2>&1 | tee -a "$OUT"
done
echo; python3 - "$OUT" <<'Y'
import os, re, statistics, sys
rows = {}
for line in open(sys.argv[1]):
    if not line.startswith(("RESULT", "DIRTY") if os.environ.get("DIRTY") else "RESULT"):
        continue
    f = dict(re.findall(r"(\S+?)=(\S+)", line))
    rate, through = float(f["ingest/s"]), float(f["e2e/s"])
    cpu = float(re.search(r"\(([0-9.]+)ms/msg\)", line).group(1))
    rows.setdefault((f["sess"], f["reuse"]), {}).setdefault(f["verify"], []).append((rate, cpu, through))
for key, v in sorted(rows.items()):
    if len(v) < 2:
        print(f"sess={key[0]} reuse={key[1]}: no clean run of both"); continue
    off, on = (statistics.median(x[0] for x in v[k]) for k in ("false", "true"))
    cpu = [statistics.median(x[1] for x in v[k]) for k in ("false", "true")]
    toff, ton = (statistics.median(x[2] for x in v[k]) for k in ("false", "true"))
    print(f"sess={key[0]} reuse={key[1]}: accepted {off:.0f}/s without, {on:.0f}/s with the check: {100 * (1 - on / off):.0f} % less; through {toff:.0f}/s and {ton:.0f}/s: {100 * (1 - ton / toff):.0f} % less; CPU {cpu[0]:.2f} and {cpu[1]:.2f} ms a message")
Y

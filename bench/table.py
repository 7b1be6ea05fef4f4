#!/usr/bin/env python3
"""table.py FILE: medians per load of the runs that smtp.sh or redis.sh printed, Crossfade beside Postfix, and their ratio."""
import re
import statistics
import sys

runs, lat = {}, {}
last = None
for line in open(sys.argv[1], errors="replace"):
    m = re.match(r"(RESULT|DIRTY) (crossfade|redis1|redis2|postfix)(-lat)? size=(\d+) sess=(\d+) (?:reuse=(\S+) )?.*?ingest/s=([\d.]+).*?e2e/s=([\d.]+) delivered=(\d+).*?mta_cpu_s=\S+ \(([\d.]+)ms/msg\).*?peak_anon_MB=([\d.]+).*?flushes=\d+ \(([\d.]+)/msg\)", line)
    if m:
        tag, who, is_lat, size, sess, reuse, *nums = m.groups()
        key = (int(sess), "latency run" if is_lat else "kept connections" if reuse == "-d" else "connection a message")
        runs.setdefault(key, {}).setdefault(who, []).append([float(x) for x in nums] + [tag == "DIRTY"])
        last = (key, who)
        if is_lat and pending:
            lat.setdefault(key, {}).setdefault(who, []).append(pending)
        pending = None
    m = re.match(r"smtpload .*dot250_ms\[p50=([\d.]+) p90=([\d.]+) p99=([\d.]+)", line)
    if m:
        pending = (float(m[1]), float(m[3]))

med = statistics.median
print(f"{'load':34} {'':9} {'accept/s':>9} {'end to end/s':>13} {'CPU ms/msg':>11} {'flush/msg':>10} {'anon MB':>8} {'dot-250 p50/p99 ms':>20}  runs")
for key in sorted(runs):
    row = {}
    for who in ("crossfade", "redis1", "redis2", "postfix"):
        v = runs[key].get(who)
        if not v:
            continue
        acc, e2e, _, cpu, mem, fl, _ = (med(c) for c in zip(*v))
        row[who] = (acc, e2e, cpu)
        ls = lat.get(key, {}).get(who)
        l = f"{med(x[0] for x in ls):.1f} / {med(x[1] for x in ls):.1f}" if ls else ""
        dirty = sum(1 for r in v if r[-1])
        print(f"{key[0]:3} sessions, {key[1]:20} {who:9} {acc:9.0f} {e2e:13.0f} {cpu:11.2f} {fl:10.2f} {mem:8.0f} {l:>20}  {len(v)}" + (f" ({dirty} not alone)" if dirty else ""))
    for who in row:
        if who != "postfix" and "postfix" in row:
            a, b = row[who], row["postfix"]
            print(f"{'':34} {'ratio' if who == 'crossfade' else who:9} {a[0]/b[0]:8.1f}x {a[1]/b[1]:12.1f}x {b[2]/a[2]:10.1f}x less")

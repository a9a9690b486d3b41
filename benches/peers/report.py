#!/usr/bin/env python3
"""Turns results JSON into a readable table: report.py results.json > results.md"""
import json, sys

r = json.load(open(sys.argv[1]))
m = r["meta"]
WHAT = {
    "h1-128": "HTTP/1.1 keep-alive, 64 connections, 128 B response (over L4 targets: ping-pong)",
    "h1-64k": "HTTP/1.1 keep-alive, 64 connections, 64 KiB response",
    "post-16k": "HTTP/1.1 POST 16 KiB, 64 connections",
    "h1-close": "HTTP/1.1, a new connection for every request",
    "h1-1conn": "one connection, one request at a time (round trip)",
    "tls-128": "TLS 1.3 HTTP/1.1 keep-alive, 64 connections, 128 B",
    "tls-full": "full TLS 1.3 handshake (ECDSA P-256, X25519) for every request",
    "tls-resume": "new TLS connection for every request, session resumed",
    "h2-tls": "HTTP/2 over TLS, 8 connections x 32 streams, to HTTP/1.1 upstream",
    "h2c": "HTTP/2 cleartext, 8 connections x 32 streams, to HTTP/1.1 upstream",
    "bulk": "bulk TCP, one iperf3 stream; a request is 1 MiB",
    "rate": f"fixed rate {m.get('rate')} requests/s, 32 connections, corrected for coordinated omission",
}
L4 = {"origin-other-core", "relay-copy", "relay-splice", "haproxy-tcp", "haproxy-splice", "nginx-stream", "heddle-tcp"}


def table(head, rows):
    print("| " + " | ".join(head) + " |\n|" + " --- |" * len(head))
    for x in rows:
        print("| " + " | ".join(x) + " |")
    print()


def base(rows, name):
    for b in (("haproxy-tcp", "haproxy-splice") if name in L4 else ("haproxy-http",)):
        if b in rows:
            return rows[b]["cpu_us"]
    return None


def compare(rows, anchor=None, latency=False):
    out = []
    direct = rows.get("direct")
    for n, v in sorted(rows.items(), key=lambda kv: kv[1]["cpu_us"]):
        b = rows[anchor]["cpu_us"] if anchor in rows else base(rows, n)
        lo, hi = v["cpu_us_range"]
        x = [n, f"{v['rps']:,.0f}", f"{v['cpu_us']:.2f} ({lo:.2f}-{hi:.2f})" if v["cpu_us"] else "-",
             f"{b / v['cpu_us']:.2f}x" if b and v["cpu_us"] else "-", f"{1e6 / v['cpu_us']:,.0f}" if v["cpu_us"] else "-",
             f"{v['sys_share']:.0%}" if v["cpu_us"] else "-", f"{v['core']:.0%}", f"{v['errors']:.0f}"]
        if latency:
            x += [f"{v[k]:.0f}" + (f" (+{v[k] - direct[k]:.0f})" if direct and n != "direct" else "") if k in v else "-"
                  for k in latency]
        out.append(x)
    return out


HEAD = ["target", "per s", "CPU us each (range)", "vs haproxy", "per s of a full core", "kernel share", "core busy", "errors"]
print(f"""# Peers, measured side by side

{m['date']}, kernel {m['kernel']}, {m['rounds']} rounds of {m['secs']} s, medians. {', '.join(f'{k} {v}' for k, v in m['versions'].items())}.
Proxy alone on one core; load generator and backends share the other, so "per s" is often bounded by
that side (see "core busy"): judge by CPU us each, which is user+sys of the proxy's process tree per
request, and by "per s of a full core" = 1e6 / CPU us. "vs haproxy" compares CPU (above 1 is better than
haproxy: tcp mode for L4 targets, http mode for the rest). relay-* are floors (tools/relay.c).
""")
for w in [x for x in WHAT if r.get("proxy", {}).get(x)]:
    rows = r["proxy"][w]
    lat = {"rate": ["p50_us", "p99_us", "p999_us"], "h1-1conn": ["p50_us", "p99_us"]}.get(w)
    print(f"## {w}: {WHAT[w]}\n")
    table(HEAD + ([k.replace("_us", " us").replace("p999", "p99.9") + " (added)" for k in lat] if lat else []), compare(rows, latency=lat))
if r.get("syscalls"):
    print("## System calls per request (h1-128)\n")
    table(["target", "calls"], [[k, f"{v}"] for k, v in sorted(r["syscalls"].items(), key=lambda kv: kv[1])])
for kind, rows in r.get("memory", {}).items():
    print(f"## Memory with idle keep-alive connections ({'TLS' if kind == 'tls' else 'plain'}), each used once\n")
    table(["target", "connections", "RSS at start MiB", "RSS MiB", "bytes per connection"],
          [[k, str(v["conns"]), f"{v['rss_start'] / 2**20:.1f}", f"{v['rss'] / 2**20:.1f}", f"{v['per_conn']:,.0f}"]
           for k, v in sorted(rows.items(), key=lambda kv: kv[1]["per_conn"])])
for w, by in r.get("profile", {}).items():
    print(f"## Where the CPU goes under {w} (perf, flat, top 8)\n")
    table(["target", "symbols"], [[k, "; ".join(" ".join(x.split()) for x in v[:8])] for k, v in by.items()])
for kind, rows in r.get("dns", {}).items():
    print(f"## DNS {kind} over UDP, 1,000 names, dnsperf\n")
    h = HEAD.copy()
    h[3] = "vs nsd"
    table(h, compare(rows, anchor="nsd"))
if r.get("limits"):
    print("## Limits of the loopback (tools/limits.c), server side on one core\n")
    table(["what", "per s", "CPU us each", "per s of a full core", "core busy"],
          [[k, f"{v['rps']:,.0f}", f"{v['cpu_us']:.2f}", f"{1e6 / v['cpu_us']:,.0f}", f"{v['core']:.0%}"] for k, v in r["limits"].items()])

#!/usr/bin/env python3
"""Prints the table of docs/performance.md from a results file: heddle beside HAProxy, and nsd for DNS, CPU per request."""
import json, sys

WORKLOADS = [
    ("h1-128", "HTTP/1.1 keep-alive, 64 connections, 128 B", "heddle", "haproxy-http"),
    ("h1-64k", "HTTP/1.1 keep-alive, 64 KiB responses", "heddle", "haproxy-http"),
    ("post-16k", "HTTP/1.1 POST of 16 KiB", "heddle", "haproxy-http"),
    ("h1-close", "HTTP/1.1, a connection per request", "heddle", "haproxy-http"),
    ("tls-128", "TLS 1.3 keep-alive, 128 B", "heddle", "haproxy-http"),
    ("tls-full", "TLS 1.3, a full handshake per request", "heddle", "haproxy-http"),
    ("tls-resume", "TLS 1.3, a resumed session per request", "heddle", "haproxy-http"),
    ("h2-tls", "HTTP/2 over TLS, 8 connections of 32 streams", "heddle", "haproxy-http"),
    ("h2c", "HTTP/2 cleartext, the same", "heddle", "haproxy-http"),
    ("h1-128", "TCP, ping-pong 128 B", "heddle-tcp", "haproxy-tcp"),
    ("h1-64k", "TCP, 64 KiB", "heddle-tcp", "haproxy-tcp"),
    ("h1-close", "TCP, a connection per exchange", "heddle-tcp", "haproxy-tcp"),
    ("bulk", "TCP in bulk, a MiB", "heddle-tcp", "haproxy-splice"),
]

with open(sys.argv[1]) as f:
    results = json.load(f)
pairs = []
for workload, what, ours, theirs in WORKLOADS:
    measured = results.get("proxy", {}).get(workload, {})
    pairs.append((what, measured.get(ours), measured.get(theirs), theirs.split("-")[0]))
for kind, measured in results.get("dns", {}).items():
    pairs.append((f"DNS, {kind} over UDP", measured.get("heddle"), measured.get("nsd"), "nsd"))
rows, disturbed = [], 0
for what, ours, theirs, name in pairs:
    if not ours or not theirs:
        continue
    failed = [x for x in (ours, theirs) if x["errors"] > x["n"] / 100]
    if failed:
        print(f"left out: {what}: {failed[0]['errors']:.0f} errors of {failed[0]['n']:.0f}", file=sys.stderr)
        continue
    disturbed = max(disturbed, ours["foreign"], theirs["foreign"])
    rows.append((what, ours["cpu_us"], theirs["cpu_us"], name))
if not rows:
    sys.exit("no workload was measured of both heddle and a peer")
if disturbed > 0.25:
    print(f"other work took up to {disturbed:.1f} cores meanwhile: all figures are higher than they would be", file=sys.stderr)
print("| workload | heddle, µs | peer, µs | ratio |\n|---|---|---|---|")
for what, ours, theirs, name in rows:
    print(f"| {what} | {ours:.1f} | {name} {theirs:.1f} | {ours / theirs:.2f} |")

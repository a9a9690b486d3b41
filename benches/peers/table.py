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
rows = []
for workload, what, ours, theirs in WORKLOADS:
    measured = results.get("proxy", {}).get(workload, {})
    if ours in measured and theirs in measured:
        rows.append((what, measured[ours]["cpu_us"], measured[theirs]["cpu_us"], theirs.split("-")[0]))
for kind, measured in results.get("dns", {}).items():
    if "heddle" in measured and "nsd" in measured:
        rows.append((f"DNS, {kind} over UDP", measured["heddle"]["cpu_us"], measured["nsd"]["cpu_us"], "nsd"))
if not rows:
    sys.exit("no workload was measured of both heddle and a peer")
print("| workload | heddle, µs | peer, µs | ratio |\n|---|---|---|---|")
for what, ours, theirs, name in rows:
    print(f"| {what} | {ours:.1f} | {name} {theirs:.1f} | {ours / theirs:.2f} |")

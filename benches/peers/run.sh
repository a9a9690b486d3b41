#!/usr/bin/env bash
# Builds the small C tools, makes a certificate, then runs bench.py in its own network and PID
# namespace: nothing it starts can outlive it, and its ports and sysctls touch nobody else.
set -euo pipefail
export KIT="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
export RUN="${RUN:-$(mktemp -d "${TMPDIR:-/tmp}/bench.XXXXXX")}"
export TOOLS="$RUN/tools"
mkdir -p "$TOOLS"
for t in backend relay limits tlsconn; do ${CC:-cc} -O2 -Wall -o "$TOOLS/$t" "$KIT/tools/$t.c" -lssl -lcrypto; done
export CERT="$RUN/cert.pem" KEY="$RUN/key.pem" CERTKEY="$RUN/certkey.pem"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=bench.test \
  -addext subjectAltName=DNS:bench.test,IP:127.0.0.1 -keyout "$KEY" -out "$CERT" 2>/dev/null
cat "$CERT" "$KEY" > "$CERTKEY"
ulimit -n "$(ulimit -Hn)"
exec timeout -k 2 "${LIMIT:-3000}" unshare --net --pid --fork --kill-child --mount-proc \
  bash -c 'ip link set lo up
    sysctl -q -w net.core.somaxconn=65535 net.ipv4.tcp_max_syn_backlog=65535 net.ipv4.ip_local_port_range="10000 65000" net.ipv4.ip_local_reserved_ports=15000-15100
    exec python3 "$KIT/bench.py" "$@"' bench "$@"

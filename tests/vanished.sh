#!/usr/bin/env bash
# Clients whose link goes down without a word. The server must free their places soon.
#
# It runs in network namespaces of its own. If the system does not allow them, it prints SKIPPED.
set -euo pipefail

program=${1:?usage: tests/vanished.sh PROGRAM}
spaces=(--net --pid --fork --mount-proc --kill-child)
[[ "$(id -u)" == 0 ]] || spaces+=(--map-root-user)

has_tools() {
    command -v ip unshare nsenter >/dev/null
}

if [[ "${2:-}" != inside ]]; then
    if ! has_tools || ! unshare "${spaces[@]}" true 2>/dev/null; then
        echo "SKIPPED: it needs iproute2, and a system that allows network namespaces" >&2
        exit 0
    fi
    exec unshare "${spaces[@]}" bash "$0" "$program" inside
fi

server=10.9.0.1:7070
transports=(ws sse ndjson poll)
# Long enough for a slow machine. Without its own limits the server waits for 15 minutes.
patience=60

ip link set lo up
unshare --net sleep 300 &
elsewhere=(nsenter --net --target $!)
sleep 0.2
ip link add here type veth peer name there
ip link set there netns $!
ip address add 10.9.0.1/24 dev here
ip link set here up
"${elsewhere[@]}" ip address add 10.9.0.2/24 dev there
"${elsewhere[@]}" ip link set there up

"$program" --listen "$server" --insecure-open --allowed-origin "http://$server" --log-level error \
    --heartbeat 1s --write-timeout 2s --max-connections $((${#transports[@]} + 1)) >/dev/null &

# The subscriptions that count.
connections() {
    curl --silent "http://$server/metrics" | awk '/^rejoin_connections/ { sum += $2 } END { print sum + 0 }'
}

until_connections() {
    local start=$SECONDS
    until [[ "$(connections)" == "$1" ]]; do
        if ((SECONDS - start > patience)); then
            echo "after $patience s $(connections) connections count, and not $1" >&2
            curl --silent "http://$server/metrics" | grep '^rejoin_connections' >&2
            exit 1
        fi
        sleep 0.2
    done
}

until curl --silent --output /dev/null "http://$server/health/live"; do sleep 0.1; done
for transport in "${transports[@]}"; do
    "${elsewhere[@]}" "$program" sub quiet --url "http://$server" --transport "$transport" &
done
"${elsewhere[@]}" curl --silent --no-buffer --http2-prior-knowledge "http://$server/events?topic=quiet&transport=ndjson" &
until_connections $((${#transports[@]} + 1))

"${elsewhere[@]}" ip link set there down
down=$SECONDS
until_connections 0
echo "the places of all clients were free $((SECONDS - down)) s after their link went down"

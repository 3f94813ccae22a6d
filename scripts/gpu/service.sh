#!/usr/bin/env bash
# The whole service on a machine with a Hopper GPU, once: origin with the native engine, edge, the terminal's client, one answer, /metrics.
#
#     scripts/gpu/service.sh MODEL [ARCHIVE]      MODEL as --model of npm start has it, with a tokenizer; ends with 0 if all of it worked
#     scripts/gpu/service.sh pack ARCHIVE         on a machine with network: Node and the packages that this needs, less than 64 MiB
#
# Without an ARCHIVE, node is the PATH's and node_modules is here. PORT and ORIGIN_PORT are the servers' ports, START what npm start
# takes beside them, LOG where their words go. The engine is built first, as npm start does; the machine needs no network.
set -euo pipefail
cd "$(dirname "$0")/../.."

if [ "${1:-}" = pack ]; then
  staged=$(mktemp -d)
  trap 'rm -rf "$staged"' EXIT
  mkdir "$staged/node_modules"
  # Not: other platforms' binaries, and what only tests, checks and images take.
  skipped=(uws_\* \*.darwin-\*.node \*.android-\*.node \*.win32-\*.node \*.freebsd-\*.node \*-musl.node \*-arm-\*.node .cache .vite \*.map \*.d.ts \*.d.mts \*.d.cts
    ./@biomejs ./@typescript ./typescript ./@types ./playwright-core ./@rolldown ./rolldown ./vite ./vitest ./@vitest ./@cloudflare/vitest-pool-workers
    ./lightningcss\* ./axe-core ./fast-check ./@img)
  tar -C node_modules -c "${skipped[@]/#/--exclude=}" . |
    tar -C "$staged/node_modules" -x
  cp "node_modules/uWebSockets.js/uws_linux_$(uname -m | sed s/x86_64/x64/)_$(node -p process.versions.modules).node" "$staged/node_modules/uWebSockets.js/"
  cp "$(node -p process.execPath)" "$staged/node"
  strip "$staged/node" "$staged"/node_modules/@cloudflare/workerd-*/bin/workerd
  tar -C "$staged" -c node node_modules | xz --lzma2=preset=6,dict=256MiB >"$2"
  ls -l "$2"
  exit 0
fi

model=$1 port=${PORT:-8788} origin_port=${ORIGIN_PORT:-9102} log=${LOG:-$(mktemp)}
if [ $# -gt 1 ]; then
  tar -xJf "$2"
  PATH=$PWD:$PATH
fi
start_pid=
stop() { # as Ctrl-C does: the servers end with the program that started them
  if [ -n "$start_pid" ] && kill -TERM "$start_pid" 2>/dev/null; then wait "$start_pid" || echo "npm start ended with $?"; fi
  start_pid=
}
trap stop EXIT
fail() {
  echo "service: FAILED: $1" >&2
  tail -20 "$log" >&2
  exit 1
}

read -ra more <<<"${START:-}"
node scripts/bootstrap.js start --model "$model" --port "$port" --origin-port "$origin_port" "${more[@]}" >"$log" 2>&1 &
start_pid=$!
for ((second = 0; ; second++)); do
  if curl -fsS -m 5 "http://127.0.0.1:$origin_port/readyz" >/dev/null 2>&1 && grep -q 'Ctrl-C stops it' "$log"; then break; fi
  kill -0 "$start_pid" 2>/dev/null || fail "npm start ended"
  if [ "$second" -ge 540 ]; then fail "not ready after 540 s"; fi
  sleep 1
done
grep -E '^(kernels|KV memory|loaded)|^  engine ' "$log"

chat() { timeout 120 node scripts/bootstrap.js chat --edge "http://127.0.0.1:$port" --max-tokens 200 --seed 1 "$@" || fail "the client ended with $?"; }
echo "--- an answer"
chat "Say in three sentences what a mill race is."
echo "--- the same answer's frames"
frames=$(chat --json "Say in three sentences what a mill race is.")
echo "$(wc -l <<<"$frames") frames, the last: $(tail -1 <<<"$frames" | cut -c1-300)"

echo "--- /metrics"
metrics=$(curl -fsS -m 5 "http://127.0.0.1:$origin_port/metrics") || fail "no /metrics"
grep -E '^(gen_ai_server_\w+_(sum|count|bucket.*le="(0.0[0-9]*|0.1|\+Inf)")|millrace_(\w+_tokens_total|request_\w+|slo_total|inter_token_latency_seconds_(sum|count|bucket.*le="(0.0[0-9]*|0.1|\+Inf)")|deadline_misses_total|slots|kv_cache\w+))' <<<"$metrics" |
  grep -v ' 0$'
generated=$(awk '$1 == "millrace_generation_tokens_total" { print $2 }' <<<"$metrics")
[ "${generated:-0}" -gt 0 ] || fail "/metrics counts no token"
stop
if curl -fsS -m 2 "http://127.0.0.1:$origin_port/healthz" >/dev/null 2>&1; then fail "the origin still runs"; fi
echo "service: right, $generated tokens in two answers"

/**
 * `npm run bench -- relay`: what origin and edge do to a token on its way. Open loop: tokens are due by a clock, whatever became of those before,
 * and each is timed from when it was due (origin/simulatedStamps.ts) to when a client of our own has read it (relay_client.cpp). Streams have a
 * socket each, and everything stays on the loopback. docs/benchmarks.md says how each figure comes about.
 */
import { readFileSync } from "node:fs";
import { cpus, loadavg } from "node:os";
import { encodeTokens } from "../../shared/tokensFrame.js";
import { describeBurst, isBurstGood, measureBurst } from "./relay/burst.js";
import { describeCpu, measureCpu } from "./relay/cpu.js";
import { describeCrowd, measureCrowd } from "./relay/crowd.js";
import { describeLatency, measureLatency } from "./relay/latency.js";
import { describeProfile, measureProfile } from "./relay/profile.js";
import { describeRoundTrips, measureRoundTrips, type RoundTripRow } from "./relay/roundTrips.js";
import { bars, crowd, latency, lengths, roundTrips } from "./relay/settings.js";
import { describeSlowReaders, measureSlowReaders } from "./relay/slowReaders.js";
import { median } from "./workload.js";

export interface RelayBenchOptions {
  quick: boolean;
  say: (line: string) => void;
}

/** Over this, figures are the company's too. */
const quietLoadMax = 0.5;

/** @returns all figures, for `--json`. */
export async function benchRelay({ quick, say }: RelayBenchOptions): Promise<object> {
  const load = loadavg()[0] as number;
  say(`machine: ${cpus()[0]?.model.trim()}, ${cpus().length} cores, load ${load.toFixed(2)} at the start`);
  if (load > quietLoadMax) say(`the load is over ${quietLoadMax}: something else runs here, and these figures are not to be quoted`);
  const length = quick ? lengths.quick : lengths.full;

  say(`\nstreams of ${latency.tokensPerSecond} tokens/s`);
  const direct = await measureLatency("direct", length, say);
  const through = await measureLatency("workerd", length, say);
  say(`\n${describeLatency([direct, through])}`);
  const profile = await measureProfile(Math.max(1, direct.streams), length.windowS);
  say(`\nwhere the origin's time goes with ${profile.streams} streams of ${profile.tokensPerSecond} tokens/s\n${describeProfile(profile)}`);

  const many = await measureCrowd(length);
  const share = (many.sockets * many.tokensPerSecond) / (direct.saturation * latency.tokensPerSecond);
  say(`\n${describeCrowd(many)}: ${(100 * share).toFixed(0)}% of the tokens a second that it can`);
  const sudden = await measureBurst();
  say(`\n${describeBurst(sudden)}`);

  say("");
  const cost = await measureCpu(length, say);
  say(`${cost.sockets} sockets at ${cost.tokensPerSecond} tokens/s, medians of ${length.cpuRounds} rounds\n${describeCpu(cost)}`);

  const rows: RoundTripRow[] = [];
  for (const edge of ["workerd", "wrangler"] as const)
    for (const busy of roundTrips.busyStreams) rows.push(await measureRoundTrips(edge, busy, length.pairs));
  say(`\n${length.pairs} pairs of round trips, milliseconds\n${describeRoundTrips(rows)}`);
  const bytesPerToken = wireBytesPerToken();

  const slow = await measureSlowReaders(length);
  say(`\n${describeSlowReaders(slow)}`);

  const { directStreams, throughStreams, p99Ms, loadMax } = bars.latency;
  const most = `with p99 under ${p99Ms} ms, at most ${100 * loadMax}% of saturation`;
  const addedP50 = Math.max(...rows.filter(({ edge }) => edge === "workerd").map((row) => row.addedP50));
  const verdicts: Verdict[] = [
    [`${direct.streams} streams directly ${most}; the bar: ${directStreams}`, direct.streams >= directStreams],
    [`${through.streams} streams through workerd ${most}; the bar: ${throughStreams}`, through.streams >= throughStreams],
    [
      `${(many.bytesAStream / 1_024).toFixed(1)} KiB a stream, ${many.lost} of ${crowd.sockets[1]} sockets lost; the bar: ${bars.crowd.bytesAStream / 1_024} KiB, none`,
      many.bytesAStream <= bars.crowd.bytesAStream && many.lost === 0 && many.holes === 0,
    ],
    [
      `${sudden.late + sudden.refusedLate + sudden.unanswered} STARTs without a token or a truthful refusal in time; the bar: none`,
      isBurstGood(sudden),
    ],
    [`${cost.ratio.toFixed(2)} times our CPU a token at the better peer; the bar: ${bars.cpuRatio}`, cost.ratio >= bars.cpuRatio],
    [`${addedP50.toFixed(3)} ms added by workerd at p50; the bar: ${bars.addedP50Ms} ms`, addedP50 <= bars.addedP50Ms],
    [
      `${median(slow.ratios).toFixed(2)} times the p99 of others beside readers that stopped; the bar: ${bars.slowReaders.p99Ratio}, and nothing lost`,
      median(slow.ratios) <= bars.slowReaders.p99Ratio && slow.lost + slow.holes + slow.missing === 0,
    ],
    [`${bytesPerToken.toFixed(2)} bytes a token on the wire; the bar: ${bars.bytesPerToken}`, bytesPerToken <= bars.bytesPerToken],
  ];
  say("");
  for (const [what, isKept] of verdicts) say(`${isKept ? "kept" : "missed"}: ${what}`);
  return {
    load,
    bars,
    direct,
    through,
    profile,
    crowd: many,
    burst: sudden,
    cpu: cost,
    roundTrips: rows,
    slowReaders: slow,
    bytesPerToken,
  };
}

type Verdict = [what: string, isKept: boolean];

/** The mean over the fixed text of the protocol's own test: 1,000 tokens of English, as the model's tokenizer cuts them, one a frame. */
function wireBytesPerToken(): number {
  const fixture = new URL("../../test/shared/fixtures/english-1000-tokens.txt", import.meta.url);
  const tokens = readFileSync(fixture, "utf8").split("|");
  const bytes = tokens.map((text, index) => {
    const payload = encodeTokens(1, index + 1, text, 0).length;
    // RFC 6455, 5.2: from a server, without a mask.
    return payload + (payload < 126 ? 2 : payload < 65_536 ? 4 : 10);
  });
  return bytes.reduce((sum, count) => sum + count, 0) / tokens.length;
}

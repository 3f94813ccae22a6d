import fc from "fast-check";
import { Histogram, type Metric, Registry } from "prom-client";
import { expect, test } from "vitest";
import { TokenHistogram } from "../../origin/tokenHistogram.js";
import { classNames } from "../../shared/classes.js";

const [name, help, bounds] = ["some_seconds", "Some", [0.001, 0.01, 0.5, 2]] as const;

// A scrape cannot tell which of the two counted.
test("is read as prom-client's own histogram is", async () => {
  const values = fc.array(
    fc.tuple(fc.constantFrom(...classNames), fc.oneof(fc.constantFrom(0, ...bounds), fc.double({ min: 0, max: 4, noNaN: true }))),
  );
  await fc.assert(
    fc.asyncProperty(values, async (observed) => {
      const [own, theirs] = [new Registry(), new Registry()];
      const histogram = new TokenHistogram(name, help, bounds);
      own.registerMetric(histogram as unknown as Metric);
      const reference = new Histogram({ name, help, buckets: [...bounds], labelNames: ["class"], registers: [theirs] });
      for (const service of classNames) reference.zero({ class: service });
      for (const [service, value] of observed) {
        histogram.observe(service, value);
        reference.observe({ class: service }, value);
      }
      expect(lines(await own.metrics())).toEqual(lines(await theirs.metrics()));
    }),
  );
});

/** Labels stand in any order. */
function lines(metrics: string): string[] {
  const sorted = (labels: string): string => labels.split(",").sort().join(",");
  return metrics.split("\n").map((line) => line.replace(/\{(.*)\}/u, (_, labels: string) => `{${sorted(labels)}}`));
}

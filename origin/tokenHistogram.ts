/** A histogram by service class that every token is counted in: prom-client's own looks its labels up by their names at each value. */
import type { MetricValueWithName } from "prom-client";
import { type ClassName, classNames } from "../shared/classes.js";

/** Values up to each bound, and one place more for those over all; and their sum. */
interface Tally {
  counts: Float64Array;
  sum: number;
}

/** What a registry of prom-client's needs of a metric. */
export class TokenHistogram {
  readonly type = "histogram";
  readonly #tallies: Readonly<Record<ClassName, Tally>>;

  /** @param bounds of the buckets, rising. */
  constructor(
    readonly name: string,
    readonly help: string,
    private readonly bounds: readonly number[],
  ) {
    const tally = (): Tally => ({ counts: new Float64Array(bounds.length + 1), sum: 0 });
    this.#tallies = Object.fromEntries(classNames.map((each) => [each, tally()])) as Record<ClassName, Tally>;
  }

  observe(service: ClassName, value: number): void {
    const tally = this.#tallies[service];
    let bucket = 0;
    while (bucket < this.bounds.length && value > (this.bounds[bucket] as number)) bucket++;
    tally.counts[bucket] = (tally.counts[bucket] as number) + 1;
    tally.sum += value;
  }

  async get(): Promise<object> {
    const { name, help, type } = this;
    return { name, help, type, aggregator: "sum", values: classNames.flatMap((service) => this.#valuesOf(service)) };
  }

  reset(): void {
    for (const tally of Object.values(this.#tallies)) {
      tally.counts.fill(0);
      tally.sum = 0;
    }
  }

  /** Buckets count what is under their bound in all. */
  #valuesOf(service: ClassName): MetricValueWithName<"class" | "le">[] {
    const { counts, sum } = this.#tallies[service];
    let count = 0;
    const buckets = [...counts].map((own, index) => {
      count += own;
      return { metricName: `${this.name}_bucket`, labels: { class: service, le: this.bounds[index] ?? "+Inf" }, value: count };
    });
    const labels = { class: service };
    return [...buckets, { metricName: `${this.name}_sum`, labels, value: sum }, { metricName: `${this.name}_count`, labels, value: count }];
  }
}

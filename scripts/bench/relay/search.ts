/** Looks for a limit by trying. */

/**
 * The largest count that holds, of those up to `max`, to within `precision` of itself: doubled from `from` while it holds (or halved until
 * it does), then bisected.
 * @returns 0 where not even 1 holds.
 */
export async function largest(
  holds: (count: number) => Promise<boolean>,
  { from, max, precision }: { from: number; max: number; precision: number },
): Promise<number> {
  let [low, high] = [0, Math.min(from, max)];
  while (high > low && (await holds(high))) [low, high] = [high, Math.min(2 * high, max)];
  if (low === high) return low;
  for (let lower = high >> 1; low === 0 && lower >= 1; lower >>= 1) {
    if (await holds(lower)) low = lower;
    else high = lower;
  }
  while (high - low > Math.max(1, precision * low) && low > 0) {
    const middle = (low + high) >> 1;
    if (await holds(middle)) low = middle;
    else high = middle;
  }
  return low;
}

/** The page around the SDK, where there is one: whether it can be seen, and when a connection is worth a look. Elsewhere nothing happens. */

/** Calls back now and whenever the page is hidden or shown. @returns what ends that. */
export function watchHidden(listener: (isHidden: boolean) => void): () => void {
  if (typeof document === "undefined") return () => {};
  const page = document;
  const tell = (): void => listener(page.hidden);
  page.addEventListener("visibilitychange", tell);
  tell();
  return () => page.removeEventListener("visibilitychange", tell);
}

/** Calls back when the page is shown, comes back from the cache, or has a network again. @returns what ends that. */
export function watchWakes(listener: () => void): () => void {
  if (typeof document === "undefined") return () => {};
  const shown = (): void => {
    if (!document.hidden) listener();
  };
  document.addEventListener("visibilitychange", shown);
  for (const sign of wakes) addEventListener(sign, listener);
  return () => {
    document.removeEventListener("visibilitychange", shown);
    for (const sign of wakes) removeEventListener(sign, listener);
  };
}

const wakes = ["online", "pageshow"] as const;

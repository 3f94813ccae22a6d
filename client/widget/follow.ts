/**
 * Keeps the page at its end while an answer grows, until the reader scrolls up; a button, or scrolling down again, resumes it.
 * @returns to be called whenever the page may have grown.
 */
export function followEnd(jump: HTMLButtonElement): { grown(): void; resume(): void } {
  const page = document.documentElement;
  let following = true;
  let lastTop = 0;

  const distance = (): number => page.scrollHeight - innerHeight - scrollY;
  const grown = (): void => {
    if (following) scrollTo({ top: page.scrollHeight, behavior: "instant" });
    jump.hidden = following || distance() < nearPx;
  };
  const resume = (): void => {
    following = true;
    grown();
  };

  addEventListener(
    "scroll",
    () => {
      // Only a reader moves the page up; that it grows leaves the position as it is.
      if (scrollY < lastTop - 1) following = distance() < nearPx;
      else if (distance() < nearPx) following = true;
      lastTop = scrollY;
      jump.hidden = following || distance() < nearPx;
    },
    { passive: true },
  );
  addEventListener("resize", grown, { passive: true });
  jump.addEventListener("click", resume);
  return { grown, resume };
}

/** Closer to the end than this is at the end. */
const nearPx = 24;

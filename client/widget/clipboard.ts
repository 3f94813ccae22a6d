import { element, icon } from "./dom.js";

/** A button that copies what `text` gives, and says whether it could. */
export function copyButton(label: string, text: () => string, say: (sentence: string) => void): HTMLButtonElement {
  const caption = element("span", {}, "Copy");
  const made = element("button", { type: "button", class: "action", "aria-label": label }, icon("copy"), caption);
  let timer: ReturnType<typeof setTimeout> | undefined;
  made.addEventListener("click", async () => {
    const copied = await copy(text());
    caption.textContent = copied ? "Copied" : "Select and copy by hand";
    made.querySelector("svg")?.replaceWith(icon(copied ? "check" : "alert"));
    say(caption.textContent);
    clearTimeout(timer);
    timer = setTimeout(() => {
      caption.textContent = "Copy";
      made.querySelector("svg")?.replaceWith(icon("copy"));
    }, shownMs);
  });
  return made;
}

const shownMs = 2_000;

/** Whether the clipboard took it: it is closed to pages that did not come over TLS or from this machine. */
async function copy(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}

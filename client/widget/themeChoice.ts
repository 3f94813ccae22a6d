/** Light, dark, or as the system has it, remembered on this device. */
export type Theme = "light" | "dark";

const key = "millrace.theme";

/** What the reader chose; undefined follows the system. */
export function chosenTheme(): Theme | undefined {
  const chosen = stored();
  return chosen === "light" || chosen === "dark" ? chosen : undefined;
}

export function shownTheme(): Theme {
  return chosenTheme() ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
}

export function applyTheme(theme: Theme | undefined): void {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
}

export function chooseTheme(theme: Theme): void {
  applyTheme(theme);
  try {
    localStorage.setItem(key, theme);
  } catch {
    // Storage is forbidden here: the choice lasts as long as the page.
  }
}

function stored(): string | null {
  try {
    return localStorage.getItem(key);
  } catch {
    return document.documentElement.dataset.theme ?? null;
  }
}

import { icon } from "./dom.js";
import { chooseTheme, shownTheme } from "./themeChoice.js";

/** A button that switches between light and dark, and names where it leads. */
export function wireThemeButton(button: HTMLButtonElement): void {
  const show = (): void => {
    const other = shownTheme() === "dark" ? "light" : "dark";
    button.replaceChildren(icon(other === "dark" ? "moon" : "sun"));
    button.title = `Switch to ${other} colours`;
    button.setAttribute("aria-label", button.title);
  };
  button.addEventListener("click", () => {
    chooseTheme(shownTheme() === "dark" ? "light" : "dark");
    show();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  show();
}

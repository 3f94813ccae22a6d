/** Runs before the first paint, so that a page whose reader chose a theme never flashes in the other. */
import { applyTheme, chosenTheme } from "./themeChoice.js";

applyTheme(chosenTheme());

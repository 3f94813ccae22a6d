/**
 * Markdown whose end has not arrived yet, read the way it will most likely go on. Without this, `**bol` shows its asterisks until the
 * closing ones come, `text\n-` flashes as a heading before it becomes a list, and a table begins as a line of bars.
 */
export function mendTail(source: string): string {
  if (hasOpenFence(source)) return source;
  const text = source.replace(danglingMarker, "").replace(/!?\[([^\]\n]*)\]\([^)\n]*$/, "$1");
  const start = text.lastIndexOf("\n") + 1;
  const line = text.slice(start);
  if (/^\s*\|/.test(line) && start === 0) return "";
  return text.slice(0, start) + closeInline(line);
}

/** A last line that so far is nothing but the mark of a list, heading, quote, rule, table or fence. */
const danglingMarker = /(?:^|\n)[ \t]*(?:[-=*+#>|~`]+|\d{1,3}[.)]?)[ \t]*$/;

function hasOpenFence(source: string): boolean {
  let fence: string | undefined;
  for (const [, mark = ""] of source.matchAll(/^ {0,3}(`{3,}|~{3,})/gm)) {
    if (fence === undefined) fence = mark;
    else if (mark[0] === fence[0] && mark.length >= fence.length) fence = undefined;
  }
  return fence !== undefined;
}

/** Closes code and strong emphasis that are open at the line's end; marks that have nothing behind them yet are left out. */
function closeInline(line: string): string {
  const bare = line.replace(/(?:\*{1,3}|`+)$/, (marks, at: number) => (isClosing(line.slice(0, at), marks) ? marks : ""));
  if (count(bare, /`/g) % 2 === 1) return `${bare}\``;
  const outsideCode = bare.replace(/`[^`]*`/g, "");
  return count(outsideCode, /\*\*/g) % 2 === 1 ? `${bare.trimEnd()}**` : bare;
}

/** Whether marks at the line's end close what the text before them opened. */
function isClosing(before: string, marks: string): boolean {
  const pattern = marks.startsWith("`") ? /`/g : marks.length >= 2 ? /\*\*/g : /\*/g;
  return count(before, pattern) % 2 === 1;
}

function count(text: string, pattern: RegExp): number {
  return text.match(pattern)?.length ?? 0;
}

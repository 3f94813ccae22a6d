/** The text, cut at the last code point that fits into so many bytes of UTF-8. */
export function withinBytes(text: string, bytesMax: number): string {
  const { read } = new TextEncoder().encodeInto(text, new Uint8Array(bytesMax));
  return read === text.length ? text : text.slice(0, read);
}

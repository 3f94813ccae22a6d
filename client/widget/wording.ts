/** What the page says, where it depends on what happened. */
import type { ErrorCode, HelloInfo, LinkState, Measures, MillraceError } from "../index.js";

/** An error's sentence, as one. */
export function sentence(error: MillraceError): string {
  const text = error.message.trim();
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;
}

/** What an error that ended an answer means to whoever reads it. @param hasText whether some of the answer had come. */
export function brokenOff(code: ErrorCode, hasText: boolean): string {
  if (code === "context_exceeded") return "This conversation is too long for the model.";
  if (code === "frame_too_large") return "This conversation is too long to send.";
  if (code === "overloaded") return "Too many people are asking right now.";
  if (code === "draining") return hasText ? "The server is restarting and cut this answer short." : "The server is restarting.";
  if (hasText) return "The answer broke off. What had arrived is kept.";
  return "No answer came.";
}

/** Why there is no connection. */
export function noConnection(error: MillraceError): string {
  const { code } = error;
  if (code === "model_loading") return "The model is still loading.";
  if (code === "origin_unreachable") return "The edge is here, but the origin that answers cannot be reached.";
  if (code === "draining") return "The server is restarting.";
  if (code === "overloaded") return "The server is busy.";
  if (code === "connection_lost") return "The server cannot be reached.";
  if (code === "connection_timeout") return "The server does not answer.";
  return `There is no connection. ${sentence(error)}`;
}

export function queued(place: number): string {
  return place === 1 ? "You are next in the queue." : `You are number ${place} in the queue.`;
}

export function leftOut(turns: number): string {
  const messages = turns === 1 ? "the oldest message was" : `the ${turns} oldest messages were`;
  return `The conversation outgrew the model’s memory: ${messages} left out.`;
}

export function caution(hello: HelloInfo): string {
  return hello.engine === "simulated"
    ? "Simulated engine: these words come from a clock, not from a model."
    : `${hello.model} can be wrong; check what matters.`;
}

export function modelLabel(state: LinkState): string {
  if (state.kind === "open") return state.hello.engine === "simulated" ? `Simulated engine · ${state.hello.model}` : state.hello.model;
  return state.kind === "connecting" ? "Connecting…" : "Not connected";
}

/** The read-out's three figures; a dash where one is not known yet. */
export function readout({ firstTokenMs, tokensPerSecond, gapP99Ms }: Measures): { label: string; value: string; meaning: string }[] {
  return [
    { label: "First token", value: duration(firstTokenMs), meaning: "From sending the question to the first text" },
    {
      label: "Speed",
      value: tokensPerSecond === undefined ? "–" : `${tokensPerSecond.toFixed(tokensPerSecond < 10 ? 1 : 0)} tokens/s`,
      meaning: "Tokens a second since the first",
    },
    { label: "p99 gap", value: duration(gapP99Ms), meaning: "99 of 100 tokens came within this time of the one before" },
  ];
}

function duration(ms: number | undefined): string {
  if (ms === undefined) return "–";
  return ms < 1_000 ? `${Math.round(ms)} ms` : `${(ms / 1_000).toFixed(2)} s`;
}

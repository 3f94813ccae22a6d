/** Runs a crowd on an engine and keeps what each was told. */
import type { Engine, FinishReason } from "../../engine/binding/index.js";
import type { Member } from "./members.js";

export interface Answer {
  ids: number[];
  text: string;
  seq: number;
  started: boolean;
  /** Undefined until it has ended. */
  reason: FinishReason | undefined;
}

export interface CrowdRun {
  answers: Map<Member, Answer>;
  /** Most that were in slots at once. */
  runningMost: number;
  seconds: number;
}

/** @param atOnce how many may be under way; the next is submitted when one ends. */
export function runCrowd(engine: Engine, members: Member[], atOnce: number, say: (line: string) => void): Promise<CrowdRun> {
  const begunMs = performance.now();
  const run: CrowdRun = { answers: new Map(), runningMost: 0, seconds: 0 };
  const ids = new Map<Member, number>();
  const later = members
    .filter(({ cancellation }) => cancellation?.moment === "elsewhere")
    .sort((a, b) => (b.cancellation?.count ?? 0) - (a.cancellation?.count ?? 0));
  let [next, ended, tokens] = [0, 0, 0];
  return new Promise((resolve) => {
    const cancel = (member: Member): void => engine.cancel(ids.get(member) ?? 0);
    const submit = (): void => {
      const member = members[next++];
      if (!member) return;
      const answer: Answer = { ids: [], text: "", seq: 0, started: false, reason: undefined };
      run.answers.set(member, answer);
      const { moment, count } = member.cancellation ?? {};
      const id = engine.submit(member.request, (event) => {
        if (event.kind === "started") {
          answer.started = true;
          run.runningMost = Math.max(run.runningMost, engine.stats().running);
        }
        if (event.kind === "tokens") {
          answer.ids.push(...event.ids);
          answer.text += event.text;
          tokens += event.ids.length;
          if (moment === "token" && event.seq >= (count ?? 0)) cancel(member);
        }
        if (event.kind === moment) cancel(member);
        for (; later.length > 0 && (later.at(-1)?.cancellation?.count ?? 0) <= tokens; later.pop()) cancel(later.at(-1) as Member);
        if (event.kind !== "finished") return;
        answer.seq = event.seq;
        answer.reason = event.reason;
        run.seconds = (performance.now() - begunMs) / 1_000;
        if (++ended % 100 === 0)
          say(`  ${ended} of ${members.length} ended after ${run.seconds.toFixed(0)} s, with ${tokens} tokens in all`);
        if (ended === members.length) resolve(run);
        else submit();
      });
      ids.set(member, id);
      if (moment === "submitted") cancel(member);
    };
    for (let i = 0; i < Math.min(atOnce, members.length); i++) submit();
  });
}

/** The first difference between what was told in a crowd and elsewhere, as a sentence. What was cancelled must be a beginning of it. */
export function difference(told: Answer, elsewhere: Answer): string | undefined {
  const at = told.ids.findIndex((id, index) => id !== elsewhere.ids[index]);
  if (at >= 0) return `token ${at + 1} is ${told.ids[at]}, elsewhere ${elsewhere.ids[at] ?? "none"}`;
  if (!elsewhere.text.startsWith(told.text)) return "the tokens agree and the text does not";
  if (told.reason === "cancelled") return told.seq <= elsewhere.seq ? undefined : `had ${told.seq} tokens, elsewhere ${elsewhere.seq}`;
  if (told.reason === elsewhere.reason && told.seq === elsewhere.seq && told.text === elsewhere.text) return undefined;
  return `ended by ${told.reason} after ${told.seq} tokens, elsewhere by ${elsewhere.reason} after ${elsewhere.seq}`;
}

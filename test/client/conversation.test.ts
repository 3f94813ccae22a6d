import { expect, test } from "vitest";
import { Conversation } from "../../client/conversation.js";
import type { Response } from "../../client/response.js";
import { type ChatMessage, Op } from "../../shared/protocol.js";
import { answering } from "./support.js";

/** A link whose answers are these texts, and what it was asked. */
function answersOf(...texts: string[]) {
  const asked: ChatMessage[][] = [];
  const tell: ReturnType<typeof answering>["hear"][] = [];
  const start = (messages: ChatMessage[]): Response => {
    asked.push(messages);
    const { response, join, hear } = answering();
    join();
    tell.push(hear);
    const text = texts.shift();
    if (text) hear([Op.TOKENS, 1, 1, text, 0, [1]]);
    return response;
  };
  return { asked, start, tell };
}

test("each question carries what was said before, under the system message", () => {
  const { asked, start } = answersOf("Paris.", "Two million.");
  const conversation = new Conversation(start, {}, "Be brief.");
  conversation.ask("Capital of France?");
  conversation.ask("How many people?");
  expect(asked[1]).toEqual([
    ["system", "Be brief."],
    ["user", "Capital of France?"],
    ["assistant", "Paris."],
    ["user", "How many people?"],
  ]);
});

test("a retry asks the last question again, without its answer", () => {
  const { asked, start } = answersOf("Wrong.", "Right.");
  const conversation = new Conversation(start);
  conversation.ask("?");
  conversation.retry();
  expect(asked).toEqual([[["user", "?"]], [["user", "?"]]]);
  expect(conversation.messages.at(-1)).toEqual(["assistant", "Right."]);
});

// No template is handed two user turns in a row, and no question is lost.
test("a question that got no answer joins the next", () => {
  const { asked, start } = answersOf("", "Yes.");
  const conversation = new Conversation(start);
  conversation.ask("Is water wet?");
  conversation.ask("In one word.");
  expect(asked[1]).toEqual([["user", "Is water wet?\n\nIn one word."]]);
});

// Whoever was interrupted knows what the other heard, and goes on from there.
test("a truncated answer counts as far as it was heard", () => {
  const { asked, start, tell } = answersOf("Once upon a time there was", "Yes?");
  const conversation = new Conversation(start);
  const told = conversation.ask("A story?");
  tell[0]?.([Op.TRUNCATED, 1, 1, 11]);
  conversation.ask("Wait!");
  expect(asked[1]).toEqual([
    ["user", "A story?"],
    ["assistant", "Once upon a"],
    ["user", "Wait!"],
  ]);
  expect(told.text).toBe("Once upon a time there was");
});

// A page that was loaded anew carries on what was said in it.
test("a conversation goes on from what was said before", () => {
  const { asked, start } = answersOf("Of course.");
  const before = [{ question: "One?", answer: { heard: "Yes." } }, { question: "Lost?" }];
  const conversation = new Conversation(start, {}, undefined, before);
  conversation.ask("Two?");
  expect(asked[0]).toEqual([
    ["user", "One?"],
    ["assistant", "Yes."],
    ["user", "Lost?\n\nTwo?"],
  ]);
});

test("nothing can be asked again before anything was asked", () => {
  expect(() => new Conversation(answersOf().start).retry()).toThrow("no question");
});

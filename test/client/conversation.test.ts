import { expect, test } from "vitest";
import type { Connection } from "../../client/connection.js";
import { Conversation } from "../../client/conversation.js";
import { Response } from "../../client/response.js";
import { type ChatMessage, Op } from "../../shared/protocol.js";

/** A connection whose answers are these texts, and what it was asked. */
function answering(...texts: string[]) {
  const asked: ChatMessage[][] = [];
  const connection = {
    start(messages: ChatMessage[]) {
      asked.push(messages);
      const response = new Response(() => {});
      const text = texts.shift();
      if (text) response.apply([Op.TOKENS, 1, 1, text, 0]);
      return response;
    },
  } as unknown as Connection;
  return { asked, connect: () => Promise.resolve(connection) };
}

test("each question carries what was said before, under the system message", async () => {
  const { asked, connect } = answering("Paris.", "Two million.");
  const conversation = new Conversation(connect, {}, "Be brief.");
  await conversation.ask("Capital of France?");
  await conversation.ask("How many people?");
  expect(asked[1]).toEqual([
    ["system", "Be brief."],
    ["user", "Capital of France?"],
    ["assistant", "Paris."],
    ["user", "How many people?"],
  ]);
});

test("a retry asks the last question again, without its answer", async () => {
  const { asked, connect } = answering("Wrong.", "Right.");
  const conversation = new Conversation(connect);
  await conversation.ask("?");
  await conversation.retry();
  expect(asked).toEqual([[["user", "?"]], [["user", "?"]]]);
  expect(conversation.messages.at(-1)).toEqual(["assistant", "Right."]);
});

// No template is handed two user turns in a row, and no question is lost.
test("a question that got no answer joins the next", async () => {
  const { asked, connect } = answering("", "Yes.");
  const conversation = new Conversation(connect);
  await conversation.ask("Is water wet?");
  await conversation.ask("In one word.");
  expect(asked[1]).toEqual([["user", "Is water wet?\n\nIn one word."]]);
});

test("a question that could not be sent can be asked again", async () => {
  const { connect } = answering("Here.");
  let reachable = false;
  const conversation = new Conversation(() => (reachable ? connect() : Promise.reject(new Error("down"))));
  await expect(conversation.ask("Anyone?")).rejects.toThrow("down");
  reachable = true;
  expect((await conversation.retry()).text).toBe("Here.");
});

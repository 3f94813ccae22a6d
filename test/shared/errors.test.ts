import { expect, test } from "vitest";
import { closeCodeOf, type ErrorCode, errorTable, isErrorCode, MillraceError } from "../../shared/errors.js";

const codes = Object.keys(errorTable) as ErrorCode[];

test("every code closes with 4000 plus its status, within the range that applications may use", () => {
  for (const code of codes) {
    const { status } = errorTable[code];
    expect(status, code).toBeGreaterThanOrEqual(400);
    expect(status, code).toBeLessThan(600);
    expect(closeCodeOf(code), code).toBe(4000 + status);
  }
});

test("a client error is never answered with: try again later, except where there was too much at once", () => {
  for (const code of codes) {
    const { status, retry } = errorTable[code];
    if (status < 500 && status !== 429) expect(retry, code).not.toBe("later");
  }
});

test("an error carries its row of the table", () => {
  const error = new MillraceError("ticket_expired", "the ticket is 61 s old");
  expect(error).toMatchObject({
    name: "MillraceError",
    code: "ticket_expired",
    status: 401,
    closeCode: 4401,
    retry: "ticket",
    retryAfterMs: 0,
  });
  expect(error.message).toBe("the ticket is 61 s old");
});

test("only the table's own rows are codes", () => {
  expect(isErrorCode("internal")).toBe(true);
  for (const other of ["toString", "", "INTERNAL", 4500, undefined]) expect(isErrorCode(other)).toBe(false);
});

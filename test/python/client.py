"""A client of millrace.v1 written from shared/PROTOCOL.md alone: one answer completed, one resumed after its socket was cut, one truncated.

Run by test/path/python.test.ts with the edge's address; prints one line of JSON a step and exits with 0 if all went well.
"""

import asyncio
import json
import sys
import urllib.request

import msgpack
import websockets

HELLO, STARTED, QUEUED, TOKENS, DONE, ERROR, PING, RESUMED = 1, 2, 3, 4, 5, 6, 7, 8
EXPIRED, TRUNCATED = 10, 12
START, CANCEL, PONG, RESUME, TRUNCATE = 32, 33, 34, 35, 37
ALL = 2**53 - 1


def crc32c(data: bytes) -> int:
    """RFC 3720, appendix B.4."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


class Answer:
    def __init__(self) -> None:
        self.response, self.seq, self.text, self.truncated = None, 0, "", None

    def apply(self, message: list) -> bool:
        """Takes one message of its stream. Returns whether it was the last."""
        op = message[0]
        if op in (STARTED, RESUMED):
            self.response = message[2]
        elif op == TOKENS and message[2] > self.seq:
            self.seq, self.text = message[2], self.text + message[3]
        elif op == TRUNCATED:
            self.truncated = message[3]
        elif op == DONE:
            data = self.text.encode()
            assert (message[4], message[5]) == (len(data), crc32c(data)), "the answer arrived damaged"
            return True
        elif op in (ERROR, EXPIRED):
            raise RuntimeError(f"the stream ended with {message}")
        return False


class Session:
    """Sockets of one session, the first by ticket and later ones by resume token."""

    def __init__(self, edge: str) -> None:
        self.edge, self.token, self.socket, self.hello, self.stream = edge, None, None, None, 0

    async def connect(self) -> None:
        if self.token is None:
            request = urllib.request.Request(f"{self.edge}/v1/tickets", method="POST")
            with urllib.request.urlopen(request) as reply:
                ticket = json.load(reply)
            self.url, credential = ticket["url"], f"ticket.{ticket['ticket']}"
        else:
            credential = f"resume.{self.token}"
        self.socket = await websockets.connect(self.url, subprotocols=["millrace.v1", credential], compression=None)
        hello = await self.receive()
        assert hello[0] == HELLO and hello[1] == 0, hello
        self.hello, self.token, self.stream = hello[2], hello[2]["resumeToken"], 0

    async def send(self, *message) -> None:
        await self.socket.send(msgpack.packb(list(message)))

    async def receive(self) -> list:
        while True:
            message = msgpack.unpackb(await asyncio.wait_for(self.socket.recv(), 20))
            if message[0] != PING:
                return message
            await self.send(PONG, 0, message[2])

    async def start(self, messages: list, **options) -> int:
        self.stream += 1
        await self.send(START, self.stream, messages, options)
        return self.stream

    async def resume(self, answer: Answer, epoch: str) -> int:
        self.stream += 1
        await self.send(RESUME, self.stream, epoch, answer.response, answer.seq, ALL)
        return self.stream

    async def read(self, stream: int, answer: Answer, tokens: int = ALL) -> bool:
        """Reads until the answer has so many tokens, or its end. Returns whether it has ended."""
        while answer.seq < tokens:
            message = await self.receive()
            if message[1] == stream and answer.apply(message):
                return True
        return False


async def main(edge: str) -> None:
    session = Session(edge)
    await session.connect()
    messages = [["user", "How does a mill race work?"]]

    whole = Answer()
    stream = await session.start(messages, maxTokens=60)
    assert await session.read(stream, whole)
    print(json.dumps({"step": "complete", "tokens": whole.seq, "text": whole.text}))

    # The socket is cut in mid-answer; the next one has the rest.
    cut = Answer()
    stream = await session.start(messages, maxTokens=60)
    await session.read(stream, cut, tokens=10)
    epoch, had = session.hello["epoch"], cut.seq
    session.socket.transport.abort()
    await session.connect()
    assert session.hello["epoch"] == epoch
    stream = await session.resume(cut, epoch)
    assert await session.read(stream, cut)
    assert had < cut.seq == whole.seq and cut.text == whole.text
    print(json.dumps({"step": "resume", "had": had, "tokens": cut.seq}))

    # The user heard the first bytes: the answer ends there, and so does its part in the conversation.
    heard = Answer()
    stream = await session.start(messages, maxTokens=60)
    await session.read(stream, heard, tokens=10)
    await session.send(TRUNCATE, stream, 12)
    assert await session.read(stream, heard)
    assert heard.truncated is not None and heard.truncated <= 12
    after = Answer()
    stream = await session.start([["user", "And then?"]], after=heard.response, maxTokens=5)
    assert await session.read(stream, after)
    print(json.dumps({"step": "truncate", "heard": heard.truncated, "tokens": after.seq}))
    await session.socket.close()


asyncio.run(main(sys.argv[1]))

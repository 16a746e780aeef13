"""A mail server that delivers nothing: it writes down when which message came for whom, one JSON object a line.

    sink.py PORT FILE MAILS      listens at PORT (0: a free one), writes its port to FILE, and the mails to MAILS
"""

import asyncio
import json
import os
import signal
import sys
import time

PORT, PORT_FILE, MAILS = int(sys.argv[1]), *sys.argv[2:4]


async def receive(reader: asyncio.StreamReader) -> str:
    """The message after DATA: up to a line with nothing but a dot. Returns its Message-ID."""
    message_id, in_head = "", True
    while (line := await reader.readline()) not in (b".\r\n", b""):
        in_head = in_head and line != b"\r\n"
        if in_head and line.lower().startswith(b"message-id:"):
            message_id = line.split(b":", 1)[1].strip().decode()
    return message_id


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, mails) -> None:
    """RFC 5321, as little as a client needs."""
    writer.write(b"220 sink.example\r\n")
    receivers = []
    while line := await reader.readline():
        verb = line[:4].upper()
        if verb == b"RCPT":
            receivers.append(line.split(b":", 1)[1].strip().decode())
        elif verb in (b"MAIL", b"RSET", b"EHLO", b"HELO"):
            receivers = []
        if verb == b"DATA":
            writer.write(b"354 go on\r\n")
            mail = {"to": receivers, "message_id": await receive(reader), "at": time.time()}
            mails.write(json.dumps(mail) + "\n")
            mails.flush()
            writer.write(b"250 taken\r\n")
        elif verb == b"QUIT":
            writer.write(b"221 bye\r\n")
            break
        elif verb in (b"EHLO", b"HELO", b"MAIL", b"RCPT", b"RSET", b"NOOP"):
            writer.write(b"250 ok\r\n")
        else:
            writer.write(b"502 not here\r\n")
        await writer.drain()
    writer.close()


async def main() -> None:
    with open(MAILS, "w") as mails:
        server = await asyncio.start_server(lambda *stream: serve(*stream, mails), "127.0.0.1", PORT)
        with open(PORT_FILE + ".new", "w") as file:
            file.write(str(server.sockets[0].getsockname()[1]))
        os.rename(PORT_FILE + ".new", PORT_FILE)  # whole or not at all
        # Every mail is written already; nobody waits for connections that are still open.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, os._exit, 0)
        await server.serve_forever()


asyncio.run(main())

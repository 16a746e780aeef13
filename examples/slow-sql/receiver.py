"""Waits for one callback, verifies its signature, shows what is in it, and ends.

    receiver.py FILE SECRET      writes its port to FILE; SECRET is that of GET /v1/callback-secret
"""

import base64
import hashlib
import hmac
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

PORT_FILE, SECRET = sys.argv[1:3]
KEY = base64.b64decode(SECRET.removeprefix("whsec_"))


def is_genuine(headers, body: bytes) -> bool:
    """As Standard Webhooks says; there are libraries for it (docs/receivers.md)."""
    sent_at = headers.get("webhook-timestamp", "")
    if not sent_at.isdigit() or abs(time.time() - int(sent_at)) > 300:
        return False
    signed = f"{headers['webhook-id']}.{sent_at}.".encode() + body
    expected = "v1," + base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
    return any(hmac.compare_digest(expected, one) for one in headers.get("webhook-signature", "").split())


class Receiver(BaseHTTPRequestHandler):
    rung = False

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        genuine = is_genuine(self.headers, body)
        self.send_response(204 if genuine else 401)
        self.end_headers()
        if not genuine:
            return
        event = json.loads(body)
        job = event["data"]
        print(f"Callback, signature verified: {event['type']} {job['id']}")
        if job["error"]:
            print(f"    {job['error']['code']}: {job['error']['message']}")
        else:
            for row in [job["result"]["columns"], *job["result"]["rows"]]:
                print("    " + "".join(f"{value:>14}" for value in row))
        sys.stdout.flush()
        Receiver.rung = True

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Receiver)
server.timeout = 1
with open(PORT_FILE + ".new", "w") as file:
    file.write(str(server.server_port))
os.rename(PORT_FILE + ".new", PORT_FILE)  # whole or not at all
until = time.monotonic() + 120
while not Receiver.rung:
    if time.monotonic() > until:
        sys.exit("no callback within two minutes")
    server.handle_request()

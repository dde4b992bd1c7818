"""A proxy on loopback that spoils a share of the answers of a server behind it.

usage: faulty_proxy.py PORT http://127.0.0.1:PORT_OF_THE_SERVER SHARE [SEED]

SHARE of a hundred requests meet a fault: 429 with and without Retry-After, 500, a hang, a body that
is cut, JSON that is cut, a connection that is closed. Half of them reach the server all the same, as
a lost answer does. Ends with its standard input, and prints what it saw as one line of JSON: an
answer is paid for when it went out whole, so `twice` should stay 0.
"""

import collections
import hashlib
import http.client
import http.server
import json
import os
import sys
import threading
import time
import urllib.parse

FAULTS = ["429", "429 wait", "500", "hang", "cut body", "cut json", "closed"]
HANG = 6.0


class Proxy(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream, share, seed = None, 0, "0"
    lock, requests = threading.Lock(), 0
    met, paid = collections.Counter(), collections.Counter()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with Proxy.lock:
            Proxy.requests += 1
            draw = hashlib.sha256(f"{self.seed} {Proxy.requests}".encode()).digest()
            fault = FAULTS[draw[1] % len(FAULTS)] if int.from_bytes(draw[2:6], "big") % 100 < self.share else None
            if fault:
                Proxy.met[fault] += 1
        status, answer = 200, b"{}"
        if fault in (None, "cut body", "cut json") or draw[6] % 2:
            upstream = http.client.HTTPConnection(self.upstream, timeout=600)
            upstream.request("POST", self.path, body, {"Content-Type": "application/json"})
            response = upstream.getresponse()
            status, answer = response.status, response.read()
            upstream.close()
        if fault is None:
            try:
                self.reply(status, answer)
            except OSError:  # who asked has gone: not paid for
                self.close_connection = True
                return
            if status == 200 and not self.path.endswith("/tokenize"):
                with Proxy.lock:
                    Proxy.paid[hashlib.sha256(self.path.encode() + body).digest()] += 1
        elif fault.startswith("429"):
            self.reply(429, b'{"error": {"message": "slow down"}}', wait=fault.endswith("wait"))
        elif fault == "500":
            self.reply(500, b"<html>oops</html>")
        elif fault == "cut json":
            self.reply(200, answer[: len(answer) // 2])
        else:
            if fault == "hang":
                time.sleep(HANG)
            if fault == "cut body":
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer[: len(answer) // 2])
            self.close_connection = True

    def reply(self, status, body, wait=False):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if wait:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def main(port, upstream, share, seed="0"):
    Proxy.upstream, Proxy.share, Proxy.seed = urllib.parse.urlparse(upstream).netloc, int(share), seed
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Proxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()
    twice = sum(1 for count in Proxy.paid.values() if count > 1)
    print(json.dumps({"requests": Proxy.requests, "faults": Proxy.met, "paid": len(Proxy.paid), "twice": twice}))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""An application that takes part in a move: it notes in /data/log what it is told, and reports as /data/mode says."""
import http.server, json, threading, time, urllib.error, urllib.request
lock = threading.Lock()
def note(**what):
    with lock, open("/data/log", "a") as log: log.write(json.dumps(what) + "\n")
def report(told, token=None, **more):
    body = json.dumps({"token": token or told["token"], **more}).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(told["report"], body), timeout=5) as answer: status = answer.status
    except urllib.error.HTTPError as error: status = error.code
    except OSError: status = 0
    note(report=status)
def right(told): report(told)
def wrong(told): report(told, "0" * 64); report(told, told["token"][:-1])
def wrong_then_right(told): wrong(told); time.sleep(0.2); report(told)
def twice(told): report(told); report(told)
def cannot(told): report(told, error="the disk is full")
def late(told): time.sleep(told["timeout_ms"] / 1000 + 0.7); report(told)
def never(told): pass
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        note(path=self.path, **told)
        mode = open("/data/mode").read().strip()
        if told["event"] == "shutdown" and mode == "within": report(told)
        if told["event"] == "quiesce" and mode == "dawdles": time.sleep(3)
        self.send_response(503 if mode == "refuses_" + told["event"] else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()
        if told["event"] == "shutdown" and mode in globals(): threading.Timer(0.3, globals()[mode], [told]).start()
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 8080), Handler)
note(ready=True)
server.serve_forever()

"""Python's own HTTP server, which reads no bodies: http_server.py ADDRESS PORT LOG FILE.

Serves FILE at every path. Writes every request that it has seen as a line of JSON into LOG.
"""

import http.server
import json
import sys

ADDRESS, PORT, LOG, FILE = sys.argv[1], int(sys.argv[2]), open(sys.argv[3], "a", buffering=1), sys.argv[4]


class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def translate_path(self, path):
        return FILE

    def log_request(self, code="-", size="-"):
        headers = getattr(self, "headers", None)
        LOG.write(json.dumps({
            "method": self.command,
            "line": self.requestline,
            "host": headers.get("Host") if headers is not None and self.command else None,
        }) + "\n")

    def log_message(self, *args):
        pass

    do_POST = do_PUT = do_DELETE = do_OPTIONS = do_TRACE = do_PATCH = http.server.SimpleHTTPRequestHandler.do_GET


http.server.ThreadingHTTPServer.daemon_threads = True
http.server.ThreadingHTTPServer.request_queue_size = 256
http.server.ThreadingHTTPServer((ADDRESS, PORT), Handler).serve_forever()

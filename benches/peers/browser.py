"""The `EventSource` of a real browser: a page that sends home what it hears."""

import http.server
import os
import subprocess
import tempfile
import threading
import urllib.parse

from readers import Reader

PAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "page.html")


class Home:
    """Serves the page, and gives what it sends to the reader."""

    def __init__(self):
        self.reader = None
        home = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                with open(PAGE, "rb") as page:
                    self.answer(page.read() if self.path.startswith("/?") else b"")

            def do_POST(self):
                home.reader.hear(self.path, self.rfile.read(int(self.headers["content-length"])))
                self.answer(b"")

            def answer(self, body):
                self.send_response(200)
                self.send_header("content-type", "text/html")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.origin = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


class Browser(Reader):
    def __init__(self, options, home, url, gap):
        super().__init__()
        self.options, self.home = options, home
        self.query = urllib.parse.urlencode({"url": url, "gap": gap})
        self.opened = 0
        home.reader = self

    def read(self):
        self.place = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        command = [self.options.chromium, "--headless", "--no-sandbox", "--disable-gpu"]
        command += [f"--user-data-dir={self.place.name}", f"{self.home.origin}/?{self.query}"]
        self.child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def hear(self, path, body):
        if path == "/open":
            self.opened += 1
            self.is_open.set()
        elif path == "/gap":
            self.told += 1
        else:
            self.take(body)

    def end(self):
        self.child.terminate()
        self.child.wait()
        self.place.cleanup()

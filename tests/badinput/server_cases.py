"""What web servers and object stores answer instead of the file that was asked for."""

from __future__ import annotations

from tests.badinput.refusals import SECRET, Case
from tests.loopback import Handler

PAGE = b"<html>\n<title>Please sign in</title></html>\n"
DENIED = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
SLOW = b"<Error><Code>SlowDown</Code><Message>less</Message></Error>"
NO_BUCKET = b"<Error><Code>NoSuchBucket</Code><Message>no</Message></Error>"
NO_KEYS = b'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"></ListBucketResult>'


class Answers(Handler):
    """Answers by the last part of the path."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        what = self.path.partition("?")[0].rpartition("/")[2].removesuffix(".csv")
        headers: dict[str, str] = {}
        status, body, length = 200, b"k,a\n1,x\n", 0
        if what.isdigit():
            status, body = int(what), b"" if what in ("204", "304") else b"no"
        elif what == "page":
            body = PAGE
        elif what == "short":
            length = 100
        elif what == "loop":
            status, headers["Location"] = 302, self.path
        elif what == "away":
            status, headers["Location"] = 302, "file:///t.csv"
        elif what == "coded":
            headers["Content-Encoding"] = "gzip"
        elif what in ("denied", "busy"):
            status, body = (403, DENIED) if what == "denied" else (503, SLOW)
        elif what == "nowhere":
            status, body = 404, NO_BUCKET
        elif what == "bucket":
            body = NO_KEYS
        elif what == "noise":
            self.wfile.write(b"what?\r\n\r\n")
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length or len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.close_connection = length > 0

    def do_HEAD(self) -> None:
        self.do_GET()


def web(name: str, what: str, exit_code: int, *says: str) -> Case:
    """A file of a web server; ``PORT`` stands for the server's."""
    uri = f"http://user:{{{{secret:TEST_WORD}}}}@127.0.0.1:PORT/{what}.csv?token={{{{secret:TEST_WORD}}}}"
    return Case("HTTP", name, lambda _: {"TEST_WORD": SECRET}, says, file=uri, exit_code=exit_code)


def s3(name: str, uri: str, exit_code: int, *says: str, endpoint: str = "http://127.0.0.1:PORT") -> Case:
    """An object of a store; ``PORT`` stands for the server's."""
    keys = {"RETRAIN_AWS_ACCESS_KEY_ID": "key", "RETRAIN_AWS_SECRET_ACCESS_KEY": SECRET}
    return Case("S3", name, lambda _: keys | {"RETRAIN_S3_ENDPOINT": endpoint}, says, file=uri, exit_code=exit_code)


SERVERS = (
    web("not there", "404", 78, "/404.csv answered 404", "check the URI"),
    web("gone", "410", 78, "answered 410"),
    web("forbidden", "403", 78, "answered 403", "check the credentials"),
    web("signed out", "401", 78, "answered 401"),
    web("failing", "500", 75, "answered 500"),
    web("too many requests", "429", 75, "answered 429"),
    web("a page to sign in", "page", 65, "page.csv is a web page or XML"),
    web("no content", "204", 65, "204.csv is empty"),
    web("cut short", "short", 75, "did not answer whole"),
    web("a redirect in a circle", "loop", 78, "cannot be fetched", "TooManyRedirects"),
    web("a redirect to a file", "away", 78, "cannot be fetched"),
    web("no gzip where gzip was said", "coded", 75, "did not answer whole"),
    web("no HTTP", "noise", 75, "did not answer whole"),
    s3("denied", "s3://bucket/denied.csv", 78, "S3 answered 403", "permissions"),
    s3("busy", "s3://bucket/busy.csv", 74, "S3 is busy"),
    s3("no such bucket", "s3://nowhere/*.csv", 78, "404 NoSuchBucket"),
    s3("no such object", "s3://bucket/404.csv", 78, "there is no object s3://bucket/404.csv"),
    s3("no match", "s3://bucket/dt={{as_of:%Y-%m-%d}}/*.csv", 65, "no object matches s3://bucket/dt=2026-03-01/*.csv"),
    s3("a web page in the object", "s3://bucket/page.csv", 65, "page.csv is a web page or XML"),
    s3("a false endpoint", "s3://bucket/t.csv", 78, "RETRAIN_S3_ENDPOINT", endpoint="minio:9000"),
    s3("a silent endpoint", "s3://bucket/t.csv", 75, "did not answer", endpoint="http://127.0.0.1:9"),
)

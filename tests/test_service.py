"""A real server on loopback: what it answers, what it refuses, and how it ends."""

import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from astropy.io import fits
from conftest import Tiny, grow, write_tiny
from PIL import Image

from space_warps.cli.main import main
from space_warps.models.saved_model import load_model

pytest.importorskip("fastapi", reason="the extra serve is not installed")
TOKEN = "0123456789abcdef"
LIMITS = {"max_body_bytes": 2**20, "max_pixels": 10_000, "max_rows": 4, "max_requests": 2}
TIMEOUT_S = 4
Part = tuple[str, bytes]


@dataclass
class Server:
    """A service in its own process."""

    process: subprocess.Popen[str]
    port: int
    tiny: Tiny
    run: Path

    def connection(self) -> http.client.HTTPConnection:
        """A new connection."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Status and JSON, or text, of a response; with the token, unless headers are given."""
        own = {"authorization": f"Bearer {TOKEN}"} if headers is None else headers
        connection = self.connection()
        connection.request(method, path, body, own)
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        is_json = response.headers.get_content_type() == "application/json"
        return response.status, json.loads(text) if is_json else text

    def predict(self, *parts: Part, query: str = "") -> tuple[int, Any]:
        """Post a form."""
        body, headers = form(*parts)
        return self.request("POST", f"/predict{query}", body, headers)


def form(*parts: Part) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a form; the first of a part is its content disposition."""
    lines = (
        b"--bound\r\ncontent-disposition: form-data; %s\r\n\r\n%s\r\n" % (head.encode(), content)
        for head, content in parts
    )
    headers = {"content-type": "multipart/form-data; boundary=bound"}
    return b"".join(lines) + b"--bound--\r\n", headers | {"authorization": f"Bearer {TOKEN}"}


def image(content: bytes, name: str = "cutout") -> Part:
    """A part with an image."""
    return f'name="images"; filename="{name}"', content


def features(values: Any) -> Part:
    """A part with features."""
    return 'name="features"', json.dumps(values).encode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service of a short run, with small limits and a token."""
    folder = tmp_path_factory.mktemp("service")
    tiny, run = write_tiny(folder / "tiny"), folder / "run"
    short = ["search.max_layers=1", "search.k_candidates=[4]", "search.epochs_per_eval=1"]
    grow(tiny, run, *short, "search.final.epochs=2", "search.device=cpu")
    keys = [f"serve.limits.{name}={value}" for name, value in LIMITS.items()]
    keys += [f"serve.limits.timeout_s={TIMEOUT_S}", "serve.port=0", "serve.token=env:SERVICE_TOKEN"]
    process = subprocess.Popen(
        [sys.executable, "-m", "space_warps.cli.main", "serve", f"run.dir={run}", *keys],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"SERVICE_TOKEN": TOKEN},
    )
    assert process.stdout is not None and process.stderr is not None
    line = process.stdout.readline()
    found = re.search(r":(\d+)$", line.strip())
    if found is None:
        process.kill()
        pytest.fail(f"no address in {line!r}: {process.stderr.read()}")
    yield Server(process, int(found[1]), tiny, run)
    process.kill()
    process.communicate()


def test_a_cutout_gets_the_probabilities_of_the_network(server: Server) -> None:
    content = server.tiny.image(0).read_bytes()
    status, answer = server.predict(image(content, "a.png"), features({"z": 0.3, "z_err": 2e-4}))
    assert status == 200, answer
    (row,) = answer["rows"]
    model = load_model(server.run).build().eval()
    pixels = np.asarray(Image.open(server.tiny.image(0)))[None, None]
    with torch.inference_mode():
        logits = model(torch.tensor(pixels) / 255, torch.tensor([[0.3, 2e-4]]))
    expected = logits.softmax(1)[0].tolist()
    assert [*row["probabilities"].values()] == pytest.approx(expected, abs=1e-5)
    assert row["predicted"] == max(row["probabilities"], key=row["probabilities"].get)
    assert row["missing_features"] == []


def test_many_cutouts_in_several_formats(server: Server) -> None:
    shades = np.asarray(Image.open(server.tiny.image(1)))
    stored = io.BytesIO()
    np.save(stored, shades)
    parts = [image(server.tiny.image(1).read_bytes(), "a.png"), image(stored.getvalue(), "b.npy")]
    status, answer = server.predict(*parts, features([{"z": 1.5}, {"z": 1.5}]))
    assert status == 200, answer
    first, second = answer["rows"]
    assert first["probabilities"] == pytest.approx(second["probabilities"], abs=1e-6)
    assert first["missing_features"] == ["z_err"]


def test_the_card_and_the_pages(server: Server) -> None:
    status, card = server.request("GET", "/model")
    assert (status, card["classes"]) == (200, ["GALAXY", "QSO", "STAR"])
    stored = json.loads((server.run / "model.json").read_text())
    assert card["model_sha256"] == stored["weights_sha256"]
    for path in ("/", "/health", "/ready", "/openapi.json"):
        assert server.request("GET", path, headers={})[0] == 200, path
    page = server.request("GET", "/")[1]
    assert not re.findall(r"(?:src|href)=\"(?:https?:)?//", page) and "<script" not in page
    assert "Authorization" in page and "QSO" not in page, "a page without token names no classes"
    assert "space_warps_requests_total" in server.request("GET", "/metrics")[1]


@pytest.mark.parametrize("given", ["", "Bearer wrong", "Bearer ", f"Basic {TOKEN}", TOKEN, "é"])
def test_a_wrong_token_is_refused(server: Server, given: str) -> None:
    for method, path in (("POST", "/predict"), ("GET", "/model"), ("GET", "/metrics")):
        headers = {"authorization": given} if given else {}
        status, answer = server.request(method, path, headers=headers)
        assert status == 401 and "Authorization: Bearer" in answer["detail"]


def png(*shape: int) -> bytes:
    """A PNG of random shades."""
    file = io.BytesIO()
    shades = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(shades).save(file, "PNG")
    return file.getvalue()


def npy(values: Any) -> bytes:
    """An array in NumPy's format."""
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


GOOD = png(12, 12)
REFUSED: dict[str, tuple[int, list[Part], str]] = {
    "no image": (422, [features({})], "at least one file"),
    "an image as text": (422, [('name="images"', GOOD)], "with a filename"),
    "features as a file": (422, [image(GOOD), ('name="features"; filename="f"', b"{}")], "JSON"),
    "another field": (422, [image(GOOD), ('name="redshift"', b"1")], "redshift"),
    "damaged JSON": (400, [image(GOOD), ('name="features"', b"{")], "not valid JSON"),
    "an unknown feature": (422, [image(GOOD), features({"mass": 1})], "no feature 'mass'"),
    "text for a number": (422, [image(GOOD), features({"z": "high"})], "z is a number"),
    "features of two": (422, [image(GOOD), features([{}, {}])], "each of 1 images"),
    "too many images": (413, [image(GOOD)] * 5, "Maximum number of files is 4"),
    "no name": (400, [("filename=a", GOOD)], "form cannot be read"),
    "text": (415, [image(b"hello")], "neither JPEG"),
    "a web page": (415, [image(b"<html></html>")], "neither JPEG"),
    "another size": (422, [image(png(12, 13))], "1x12x12"),
    "colours": (422, [image(png(12, 12, 3))], "1x12x12"),
    "many pixels": (422, [image(png(101, 100))], "over 10,000"),
    "NaN": (422, [image(npy(np.full((12, 12), np.nan)))], "no pixel was measured"),
    "objects": (422, [image(npy(np.array(["a"] * 144).reshape(12, 12)))], "not numbers"),
    "a truncated image": (422, [image(GOOD[:50])], "damaged"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_request_gets_a_status_and_a_sentence(server: Server, name: str) -> None:
    expected, parts, text = REFUSED[name]
    status, answer = server.predict(*parts)
    assert status == expected, answer
    assert text in answer["detail"] and "\n" not in answer["detail"]


def test_other_media_models_and_paths_are_refused(server: Server) -> None:
    assert server.request("POST", "/predict", b"{}")[0] == 415
    assert server.predict(image(GOOD), query="?model=other")[0] == 404
    assert server.request("GET", "/predict")[0] == 405
    assert server.request("GET", "/../../etc/passwd")[0] == 404
    headers = {"content-type": "multipart/form-data", "authorization": f"Bearer {TOKEN}"}
    assert server.request("POST", "/predict", b"--x", headers)[0] == 400  # no boundary
    body, headers = form(image(GOOD))
    assert server.request("POST", "/predict", body[:-20], headers)[0] in (400, 422)


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_large_body_is_refused(server: Server, is_chunked: bool) -> None:
    body, headers = form(image(b"\x89PNG" + bytes(2**20)))
    chunks = (body[start : start + 2**14] for start in range(0, len(body), 2**14))
    status, answer = server.request("POST", "/predict", chunks if is_chunked else body, headers)
    assert status == 413 and "larger than 1,048,576 bytes" in answer["detail"]


def test_an_endless_body_is_refused(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(
            b"POST /predict HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n"
            b"content-type: multipart/form-data; boundary=x\r\n"
            b"authorization: Bearer %s\r\n\r\n" % TOKEN.encode()
        )
        num_bytes = 0
        try:
            while num_bytes < 2**26:
                client.sendall(b"4000\r\n" + bytes(2**14) + b"\r\n")
                num_bytes += 2**14
        except OSError:
            pass
    assert num_bytes < 2**26
    assert server.request("GET", "/health")[0] == 200


class SlowRequest(threading.Thread):
    """A request whose last byte comes some seconds after the first."""

    def __init__(self, server: Server, seconds: float) -> None:
        super().__init__()
        self.server, self.seconds = server, seconds
        self.status, self.answer = 0, None
        self.has_begun = threading.Event()

    def chunks(self) -> Iterator[bytes]:
        """The body, in two parts."""
        body, _ = form(image(self.server.tiny.image(0).read_bytes()))
        yield body[:100]
        self.has_begun.set()
        time.sleep(self.seconds)
        yield body[100:]

    def run(self) -> None:
        self.status, self.answer = self.server.request("POST", "/predict", self.chunks(), form()[1])


def test_only_some_requests_are_admitted_at_a_time(server: Server) -> None:
    slow = [SlowRequest(server, 1.0) for _ in range(2)]
    for request in slow:
        request.start()
        request.has_begun.wait()
    time.sleep(0.3)
    status, answer = server.predict(image(GOOD))
    assert status == 429 and "in progress" in answer["detail"]
    assert server.request("GET", "/ready")[0] == 503
    for request in slow:
        request.join()
        assert request.status == 200
    assert server.request("GET", "/ready")[0] == 200


def test_a_slow_request_is_refused(server: Server) -> None:
    request = SlowRequest(server, TIMEOUT_S + 1)
    request.start()
    request.join()
    assert request.status == 503 and "longer than 4 s" in request.answer["detail"]


def damaged(rng: np.random.Generator, tiny: Tiny) -> Iterator[tuple[str, bytes]]:
    """Malformed images of several kinds, without an end."""
    shades = np.asarray(Image.open(tiny.image(0)))
    jpeg, packed, plain = io.BytesIO(), io.BytesIO(), io.BytesIO()
    Image.fromarray(shades).save(jpeg, "JPEG")
    fits.PrimaryHDU(shades.astype(np.float32)).writeto(plain)
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(shades)]).writeto(packed)
    good = [jpeg.getvalue(), GOOD, plain.getvalue(), packed.getvalue(), npy(shades)]
    header = good[2][:2880]
    huge = GOOD[:16] + (2**31 - 1).to_bytes(4, "big") * 2 + GOOD[24:]
    while True:
        content = good[rng.integers(len(good))]
        end = int(rng.integers(4, len(content)))
        flipped = bytearray(content)
        for place in rng.integers(4, len(content), 5):
            flipped[place] = int(rng.integers(256))
        side = 10 ** int(rng.integers(3, 18))
        yield "truncated", content[:end]
        yield "flipped", bytes(flipped)
        yield "huge PNG", huge
        yield "huge FITS", re.sub(rb"NAXIS1  = +12 ", b"NAXIS1  = %20d " % side, header)
        yield "negative FITS", re.sub(rb"NAXIS1  = +12 ", b"NAXIS1  = %20d " % -side, header)
        yield "huge NPY", npy(shades)[:128].replace(b"(12, 12)", b"(%d,9)" % side)
        yield "endless header", b"SIMPLE  =                    T".ljust(80) * 3000
        yield "random", b"\xff\xd8\xff" + rng.bytes(int(rng.integers(1, 5000)))
        yield "not finite", npy(rng.choice([np.nan, np.inf, 1e38], (12, 12)))
        yield "odd shape", npy(np.zeros(rng.integers(0, 9, int(rng.integers(0, 5)))))


def test_malformed_images_never_break_the_service(server: Server) -> None:
    source = damaged(np.random.default_rng(0), server.tiny)
    statuses: dict[int, int] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of astropy, about the headers that are made here
        for _ in range(200):
            kind, content = next(source)
            status, answer = server.predict(image(content, f"{kind}.bin"))
            assert status in (200, 413, 415, 422), (kind, answer)
            if status != 200:
                assert answer["detail"].strip() and len(answer["detail"]) < 2000, (kind, answer)
            statuses[status] = statuses.get(status, 0) + 1
    assert statuses[422] > 100
    assert server.predict(image(GOOD))[0] == 200


def test_the_openapi_document_is_kept(server: Server, tmp_path: Path) -> None:
    """schemathesis sends what the document allows, and what it does not."""
    pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    checks = "not_a_server_error,status_code_conformance,content_type_conformance"
    command = [sys.executable, "-m", "schemathesis.cli", "run", "--checks", checks]
    command += ["--max-examples", "15", "--phases", "examples,coverage,fuzzing", "--seed", "1"]
    command += ["--suppress-health-check", "all", "-H", f"Authorization: Bearer {TOKEN}"]
    address = f"http://127.0.0.1:{server.port}/openapi.json"
    command.append(address)  # it writes its cache into the current folder
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "POST /predict" not in done.stdout or "failed" not in done.stdout.lower()


def test_sigterm_finishes_what_was_begun(server: Server) -> None:
    request = SlowRequest(server, 1.5)
    request.start()
    request.has_begun.wait()
    time.sleep(0.3)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    with pytest.raises(OSError):
        server.request("GET", "/health")
    request.join()
    assert request.status == 200, request.answer
    out, err = server.process.communicate(timeout=30)
    assert server.process.returncode == 128 + signal.SIGTERM, err
    assert TOKEN not in out + err


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["serve.port=70000", "run.dir=a"], "serve.port is a number from 0 to 65535"),
        (["serve.token=secret-in-the-arguments"], "env:NAME or file:PATH"),
        (["serve.token=env:NOT_SET_ANYWHERE"], "fewer than 16 characters"),
        (["serve.models=[a]"], "serve.models names runs"),
        (["serve.models={a/b:run}"], "without / and"),
        (["serve.limits.max_rows=0"], "serve.limits.max_rows is a number above 0"),
        (["serve.models={a:nowhere}"], "nowhere"),
        ([], "run.dir is missing"),
    ],
)
def test_a_service_that_cannot_start_says_so_in_one_line(
    keys: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "serve.port=0", *keys]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and "secret" not in line

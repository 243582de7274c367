"""How many requests does the service answer, compared with a plain FastAPI handler of the same network?

The network is that of `bench_export.py`, with eight orientations. Each request holds one JPEG of 75x75
pixels of `data/sample` and its redshift. The reference is what one writes first: a function of FastAPI
that opens the file with Pillow and calls the network with PyTorch. Both run in a process of their own on
loopback; the clients are one thread with a socket per connection, in this process.

1. throughput: 16 connections that send the next request when the answer is there, both servers in
   alternation. A line is the time of 1,000 requests.
2. latency: requests at regular times, at 50% and 90% of the throughput, whether or not earlier ones are
   answered; the time counts from when a request was due.
3. memory: `--minutes` of good requests mixed with damaged images and bodies that are too large.
"""

import json
import multiprocessing
import os
import selectors
import socket
import statistics
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench_export import SAMPLE, example
from side_by_side import Row, parse, show

NUM_REQUESTS = 1000
CONNECTIONS = 16


def serve_ours(listener: socket.socket) -> None:
    """Run the service on a socket."""
    from space_warps.deploy.inference import InferenceModel
    from space_warps.deploy.serve import ServedModel, Service, build_service, run_server
    from space_warps.deploy.uploads import RequestLimits

    saved_model, _ = example()
    served = ServedModel.of(saved_model, InferenceModel(saved_model, device="cpu"))
    limits = RequestLimits(max_requests=1024)
    run_server(build_service(Service({"default": served}, limits)), listener, limits)


def serve_plain(listener: socket.socket) -> None:
    """Run the handler that one writes first."""
    import torch
    import uvicorn
    from fastapi import FastAPI, Form, UploadFile
    from PIL import Image

    model = example()[0].build().eval()
    app, names = FastAPI(), model.architecture.feature_names

    @app.post("/predict")
    def predict(images: UploadFile, features: str = Form("{}")) -> dict[str, float]:
        pixels = torch.from_numpy(np.array(Image.open(images.file), np.float32))[None, None] / 255
        values = json.loads(features)
        row = torch.tensor([[values.get(name, np.nan) for name in names]], dtype=torch.float32)
        with torch.inference_mode():
            probabilities = model(pixels, row).softmax(1)[0]
        return dict(zip(model.architecture.classes, probabilities.tolist(), strict=True))

    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run([listener])


def start(server: Any) -> tuple[Any, tuple[str, int]]:
    """Start a server in a process; returns it and its address."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    process = multiprocessing.get_context("spawn").Process(target=server, args=(listener,))
    process.start()
    address = listener.getsockname()
    listener.close()
    return process, address


def request_bytes(content: bytes, features: str = '{"z": 0.3, "z_err": 0.0001}') -> bytes:
    """A whole request with one image."""
    body = (
        b'--b\r\ncontent-disposition: form-data; name="images"; filename="a.jpg"\r\n\r\n%s\r\n'
        b'--b\r\ncontent-disposition: form-data; name="features"\r\n\r\n%s\r\n--b--\r\n'
    ) % (content, features.encode())
    return (
        b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-type: multipart/form-data; boundary=b\r\n"
        b"content-length: %d\r\n\r\n%s" % (len(body), body)
    )


class Client:
    """A connection with at most one request in progress."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address, self.due, self.received = address, 0.0, b""
        self.connect()

    def connect(self) -> None:
        """Open a new connection."""
        self.socket = socket.create_connection(self.address, timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, request: bytes, due: float) -> None:
        """Begin a request."""
        self.due, self.received = due, b""
        self.socket.sendall(request)

    def status(self) -> int:
        """Read what is there; the status if the response is complete, else 0."""
        part = self.socket.recv(2**16)
        if not part:
            raise ConnectionError("the server closed the connection")
        self.received += part
        head, separator, body = self.received.partition(b"\r\n\r\n")
        if not separator:
            return 0
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        return int(head[9:12]) if len(body) >= length else 0


def drive(
    address: tuple[str, int],
    requests: Sequence[bytes],
    rate: float | None = None,
    clients: int = CONNECTIONS,
) -> tuple[float, list[float], dict[int, int]]:
    """Send requests; returns seconds, the latency of each, and the number of each status.

    Without a rate each connection sends the next request when it has an answer.
    """
    selector, idle = selectors.DefaultSelector(), deque(Client(address) for _ in range(clients))
    for client in idle:
        selector.register(client.socket, selectors.EVENT_READ, client)
    latencies: list[float] = []
    statuses: dict[int, int] = {}
    began, sent = time.perf_counter(), 0
    while len(latencies) < len(requests):
        now = time.perf_counter()
        while idle and sent < len(requests):
            due = now if rate is None else began + sent / rate
            if due > now:
                break
            idle.popleft().send(requests[sent], due)
            sent += 1
        wait = None if rate is None or sent == len(requests) else began + sent / rate - now
        for key, _ in selector.select(wait if wait is None or idle else None):
            if status := key.data.status():
                latencies.append(time.perf_counter() - key.data.due)
                statuses[status] = statuses.get(status, 0) + 1
                idle.append(key.data)
    seconds = time.perf_counter() - began
    for key in list(selector.get_map().values()):
        key.data.socket.close()
    return seconds, latencies, statuses


def wait_for(address: tuple[str, int], request: bytes) -> None:
    """Wait until a server answers."""
    for _ in range(120):
        try:
            if drive(address, [request], clients=1)[2] == {200: 1}:
                return
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"no answer from {address}")


def throughput(
    ours: tuple[str, int], plain: tuple[str, int], requests: list[bytes], rounds: int
) -> Row:
    """Both servers in alternation."""
    pairs = []
    for _ in range(rounds + 1):
        sides = [drive(address, requests) for address in (ours, plain)]
        assert all(set(side[2]) == {200} for side in sides), sides
        pairs.append([side[0] for side in sides])
    medians = [statistics.median(side) for side in zip(*pairs[1:], strict=True)]
    return Row(f"{len(requests)} requests, {CONNECTIONS} connections", *medians)


def resident_bytes(pid: int) -> int:
    """Resident set of a process."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def soak(address: tuple[str, int], pid: int, good: list[bytes], minutes: float) -> str:
    """Good and bad requests for some minutes; how memory changes."""
    rng = np.random.default_rng(0)
    end, sizes, counts = time.monotonic() + 60 * minutes, [], {}
    while time.monotonic() < end:
        requests = []
        for _ in range(200):
            request = good[rng.integers(len(good))]
            kind = rng.integers(4)
            head = request.partition(b"\r\n\r\n")[0]
            if kind == 1:  # flipped bytes within the image
                changed = bytearray(request)
                for place in rng.integers(len(head) + 100, len(request) - 200, 8):
                    changed[place] = int(rng.integers(256))
                request = bytes(changed)
            elif kind == 2:
                request = request_bytes(rng.bytes(int(rng.integers(10, 20000))))
            elif kind == 3:
                request = request_bytes(b"\x89PNG" + bytes(2**17), '{"z": "high"}')
            requests.append(request)
        for status, count in drive(address, requests)[2].items():
            counts[status] = counts.get(status, 0) + count
        sizes.append(resident_bytes(pid) / 2**20)
    third = max(1, len(sizes) // 3)
    parts = [max(sizes[s : s + third]) for s in (0, third, 2 * third)]
    return (
        f"memory over {minutes:g} minutes: {parts[0]:.0f}, {parts[1]:.0f}, {parts[2]:.0f} MiB at most in "
        f"each third; responses by status: {dict(sorted(counts.items()))}"
    )


def main() -> None:
    """Measure and print."""
    options = parse(__doc__, minutes=0.0)
    images = sorted((SAMPLE / "images").glob("*.jpg"))[:100]
    requests = [request_bytes(path.read_bytes()) for path in images] * (NUM_REQUESTS // 100)
    (ours, address), (plain, other) = start(serve_ours), start(serve_plain)
    notes = []
    try:
        for each in (address, other):
            wait_for(each, requests[0])
        row = throughput(address, other, requests, options.rounds)
        full = NUM_REQUESTS / row.ours_s
        notes.append(f"{full:.0f} requests per second against {NUM_REQUESTS / row.reference_s:.0f}")
        for share in (0.5, 0.9):
            latencies = drive(address, requests * 3, share * full, clients=256)[1]
            p50, p99 = np.percentile(latencies, [50, 99]) * 1000
            notes.append(
                f"at {share:.0%} of it half within {p50:.1f} ms and 99% within {p99:.1f} ms"
            )
        if options.minutes:
            notes.append(soak(address, ours.pid, requests[:100], options.minutes))
    finally:
        for process in (ours, plain):
            process.terminate()
            process.join()
    show([row], options.json, "; ".join(notes))


if __name__ == "__main__":
    main()

"""A program that listens on the port of its --port, and passes every connection on to the port that the
environment names; it first writes its id and its words into a file."""

import os
import socket
import sys
import threading
from pathlib import Path


def copy(source: socket.socket, target: socket.socket) -> None:
    while part := source.recv(1 << 16):
        target.sendall(part)
    target.shutdown(socket.SHUT_WR)


words = sys.argv[1:]
Path(os.environ["WORDS_OF_VLLM"]).write_text("\n".join([str(os.getpid()), *words]))
assert os.environ["VLLM_API_KEY"] and os.environ["VLLM_API_KEY"] not in words
to = int(os.environ["PASSES_ON_TO"])
listener = socket.create_server(("127.0.0.1", int(words[words.index("--port") + 1])))
while True:
    theirs, _ = listener.accept()
    ours = socket.create_connection(("127.0.0.1", to))
    for pair in ((theirs, ours), (ours, theirs)):
        threading.Thread(target=copy, args=pair, daemon=True).start()

"""`make lab`: a clip above ten megabytes that is opened in a notebook reaches the kernel."""

import asyncio
import json
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path

import pytest

pytest.importorskip(
    "jupyter_server", reason="JupyterLab is not installed; pip install 'scene4m[lab]'"
)
ROOT = Path(__file__).resolve().parents[1]


def flags() -> list[str]:
    "What `make lab` hands to JupyterLab after the folder."
    line = re.search(
        r"^\t@\$\(BIN\)/jupyter lab nbs *(.*)$",
        (ROOT / "Makefile").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    return shlex.split(line[1])


def ask(url: str, data: bytes | None = None):
    with urllib.request.urlopen(
        urllib.request.Request(url, data, {"Authorization": "token open"}), timeout=60
    ) as answer:
        return json.load(answer)


@pytest.fixture
def server(tmp_path):
    "The address of a Jupyter server with the flags of `make lab`."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    quiet = [
        "--no-browser",
        "--allow-root",
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        "--IdentityProvider.token=open",
    ]
    command = [
        sys.executable,
        "-m",
        "jupyter_server",
        str(tmp_path),
        *quiet,
        "--ServerApp.jpserver_extensions={}",
        *flags(),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    while process.poll() is None:
        try:
            ask(f"{url}/api/status")
            break
        except OSError:
            time.sleep(0.2)
    assert process.poll() is None, "the server does not take the flags of `make lab`"
    yield url
    process.terminate()
    process.wait()


async def answer_to(url: str, megabytes: int) -> str:
    "What the kernel says the length is of a text that it is sent."
    from tornado.websocket import websocket_connect

    kernel = ask(f"{url}/api/kernels", b"{}")["id"]
    header = dict(
        msg_id=uuid.uuid4().hex,
        username="",
        session=uuid.uuid4().hex,
        msg_type="execute_request",
        version="5.3",
    )
    code = f"len('{'x' * (megabytes << 20)}')"
    content = dict(
        code=code,
        silent=False,
        store_history=False,
        user_expressions={},
        allow_stdin=False,
        stop_on_error=True,
    )
    ws = await websocket_connect(
        f"{url.replace('http', 'ws')}/api/kernels/{kernel}/channels?token=open",
        max_message_size=1 << 30,
    )
    await ws.write_message(
        json.dumps(
            dict(
                header=header,
                parent_header={},
                metadata={},
                content=content,
                channel="shell",
                buffers=[],
            )
        )
    )
    while (said := await ws.read_message()) is not None:
        said = json.loads(said)
        if said["header"]["msg_type"] == "execute_result":
            return said["content"]["data"]["text/plain"]
    return "the connection was closed"


def test_the_flags_are_known():
    "JupyterLab passes over a flag that it does not know; up to 200 MB may be opened, as in the app."
    from jupyter_server.serverapp import ServerApp

    app = ServerApp()
    app.parse_command_line(flags())
    assert app.tornado_settings["websocket_max_message_size"] == 200 << 20


@pytest.mark.slow
def test_a_large_message_reaches_the_kernel(server):
    assert asyncio.run(answer_to(server, 12)) == str(12 << 20)

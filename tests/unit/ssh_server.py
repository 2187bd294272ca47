"""A small SSH server for tests, on loopback: real key exchange, real commands, jump hosts. Run as a program.

    python ssh_server.py FOLDER [--password WORD] [--bin FOLDER]

It makes FOLDER/host_key, accepts the public key in FOLDER/authorized.pub (and the password), prints its port, and runs
each command with `sh -c`, with --bin first in PATH. Everything it was told to run is appended to FOLDER/commands.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import threading
from pathlib import Path

import paramiko
from paramiko.common import cMSG_CHANNEL_SUCCESS


class Server(paramiko.ServerInterface):
    def __init__(self, folder: Path, password: str | None, path: str) -> None:
        self.folder, self.password, self.path = folder, password, path
        self.destinations: dict[int, tuple[str, int]] = {}

    def get_allowed_auths(self, username: str) -> str:
        return "publickey,password" if self.password else "publickey"

    def check_auth_password(self, username: str, password: str) -> int:
        return paramiko.AUTH_SUCCESSFUL if self.password and password == self.password else paramiko.AUTH_FAILED

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        authorized = self.folder / "authorized.pub"
        known = authorized.read_text().split()[1] if authorized.exists() else None
        return paramiko.AUTH_SUCCESSFUL if key.get_base64() == known else paramiko.AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED if kind == "session" else paramiko.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED

    def check_channel_direct_tcpip_request(
        self, chanid: int, origin: tuple[str, int], destination: tuple[str, int]
    ) -> int:
        self.destinations[chanid] = destination
        return paramiko.OPEN_SUCCEEDED

    def check_channel_env_request(self, channel: paramiko.Channel, name: bytes, value: bytes) -> bool:
        return True

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        with (self.folder / "commands").open("ab") as file:
            file.write(command + b"\n")
        replied = threading.Event()
        send = channel.transport._send_user_message

        def sending(message: paramiko.Message) -> None:
            send(message)
            if message.asbytes()[:1] == cMSG_CHANNEL_SUCCESS:
                channel.transport._send_user_message = send
                replied.set()

        # paramiko replies after this function: a quick command would else be over, and its channel closed, before.
        channel.transport._send_user_message = sending
        threading.Thread(target=self.execute, args=(channel, command, replied), daemon=True).start()
        return True

    def execute(self, channel: paramiko.Channel, command: bytes, replied: threading.Event) -> None:
        replied.wait()
        process = subprocess.Popen(
            ["sh", "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PATH": self.path},
        )

        def feed() -> None:
            try:
                while data := channel.recv(65536):
                    process.stdin.write(data)
                    process.stdin.flush()
                process.stdin.close()
            except OSError:
                pass

        def errors() -> None:
            while data := process.stderr.read1(65536):
                channel.sendall_stderr(data)

        threading.Thread(target=feed, daemon=True).start()
        other = threading.Thread(target=errors, daemon=True)
        other.start()
        while data := process.stdout.read1(65536):
            channel.sendall(data)
        other.join()
        channel.send_exit_status(process.wait())
        channel.close()


def pump(source: socket.socket | paramiko.Channel, target: socket.socket | paramiko.Channel) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    finally:
        target.close()


def serve(connection: socket.socket, server: Server, key: paramiko.PKey) -> None:
    transport = paramiko.Transport(connection)
    transport.add_server_key(key)
    try:
        transport.start_server(server=server)
    except (paramiko.SSHException, EOFError):
        return
    while transport.is_active():
        channel = transport.accept(3600)
        if channel and (destination := server.destinations.pop(channel.get_id(), None)):
            try:
                onward = socket.create_connection(destination)
            except OSError:
                channel.close()
                continue
            for pair in ((channel, onward), (onward, channel)):
                threading.Thread(target=pump, args=pair, daemon=True).start()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--password")
    parser.add_argument("--bin")
    options = parser.parse_args()
    key_file = options.folder / "host_key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key_file], check=True)
    key = paramiko.Ed25519Key.from_private_key_file(str(key_file))
    path = f"{options.bin}:{os.environ['PATH']}" if options.bin else os.environ["PATH"]
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    while True:
        connection, _ = listener.accept()
        server = Server(options.folder, options.password, path)
        threading.Thread(target=serve, args=(connection, server, key), daemon=True).start()


if __name__ == "__main__":
    main()

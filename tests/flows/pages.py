"""A picture of a page in headless Chromium."""

import shutil
import subprocess
from pathlib import Path

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--virtual-time-budget=20000"),
]


def find_browser() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def take_picture(address: str, file: Path, profile: Path, size: tuple[int, int] = (1400, 1100)) -> bytes:
    """Write the page as PNG; returns its bytes."""
    asked = [f"--user-data-dir={profile}", f"--screenshot={file}", f"--window-size={size[0]},{size[1]}", address]
    subprocess.run([str(find_browser()), *FLAGS, *asked], check=True, capture_output=True, timeout=180)
    return file.read_bytes()

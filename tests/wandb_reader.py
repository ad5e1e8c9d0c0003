"""Reads back what an offline W&B run has written: its log is a LevelDB log of protocol buffers."""

import json
import struct
import time
from pathlib import Path

BLOCK = 32768


def records(path):
    """Yield every record of a `run-*.wandb` file."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = Path(path).read_bytes(), 7, []
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:  # too little is left of the block for a header
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if at + 7 + length > len(data):  # not all of it is written yet
            return
        parts.append(data[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record


def newest(folder, seconds=60):
    """The log of the newest offline run in a folder; what writes it may still be busy when the run is finished."""
    path = max(Path(folder).glob("wandb/offline-run-*/run-*.wandb"), key=lambda file: file.stat().st_mtime)
    until = time.monotonic() + seconds
    while time.monotonic() < until and not any(r.WhichOneof("record_type") == "exit" for r in records(path)):
        time.sleep(0.1)
    return path


def read(folder):
    """The configuration, and one dict a logged row, of the newest offline run in a folder."""
    path = newest(folder)
    config, history = {}, []
    for record in records(path):
        for item in (*record.config.update, *record.run.config.update):
            config["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
        if record.WhichOneof("record_type") == "history":
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            history.append(row)
    return config, history, path.parent


def artifacts(folder):
    """By name, the last artifact of each: its type, aliases, metadata, and where each of its files is kept."""
    found = {}
    for record in records(newest(folder)):
        if record.WhichOneof("record_type") == "artifact":
            one = record.artifact
            files = {entry.path: entry.local_path for entry in one.manifest.contents}
            found[one.name] = (one.type, list(one.aliases), json.loads(one.metadata or "{}"), files)
    return found

"""The thing to beat: a gateway in sixty lines, as a competent engineer writes it in an afternoon. No part of ours.

Reads an SDM630 ten times a second, commits each reading, publishes it (QoS 1, mutual TLS) and deletes it when the
broker has acknowledged it; what was not acknowledged is published again after a restart.
"""

import json
import queue
import sqlite3
import sys
import time

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from pymodbus.client import ModbusTcpClient
from pymodbus.exceptions import ModbusException

PERIOD_S, WINDOW = 0.1, 200


def main(meter_port: str, broker_port: str, name: str, database: str, cert: str, key: str, ca: str) -> None:
    """Run until killed."""
    db = sqlite3.connect(database, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE IF NOT EXISTS reading (id INTEGER PRIMARY KEY AUTOINCREMENT, body TEXT NOT NULL)")
    meter = ModbusTcpClient("127.0.0.1", port=int(meter_port), timeout=0.5, retries=1)
    acknowledged: queue.SimpleQueue[int] = queue.SimpleQueue()
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name, clean_session=False)
    client.tls_set(ca, cert, key)
    client.reconnect_delay_set(1, 5)
    client.on_publish = lambda _client, _data, mid, _code, _properties: acknowledged.put(mid)
    client.connect_async("localhost", int(broker_port), keepalive=30)
    client.loop_start()
    published: dict[int, int] = {}  # message id: row id
    last_id = 0
    due_s = time.monotonic()
    while True:
        if time.monotonic() >= due_s:
            due_s = max(due_s + PERIOD_S, time.monotonic())
            try:
                answer = meter.read_input_registers(0x0034, count=22, device_id=1)
                power_w = meter.convert_from_registers(answer.registers[:2], meter.DATATYPE.FLOAT32)
                energy_kwh = meter.convert_from_registers(answer.registers[20:22], meter.DATATYPE.FLOAT32)
                body = json.dumps({"at": round(time.time(), 1), "power_w": power_w, "energy_kwh": energy_kwh})
                db.execute("INSERT INTO reading (body) VALUES (?)", (body,))
            except (ModbusException, OSError, IndexError) as error:
                print(f"meter: {error}", file=sys.stderr)
        if len(published) < WINDOW:
            rows = db.execute("SELECT id, body FROM reading WHERE id > ? ORDER BY id LIMIT ?", (last_id, WINDOW))
            for last_id, body in rows.fetchall():
                payload = json.dumps({"id": last_id, **json.loads(body)})
                published[client.publish(f"bench/{name}", payload, qos=1).mid] = last_id
        try:
            mids = [acknowledged.get(timeout=max(0.001, due_s - time.monotonic()))]
            while not acknowledged.empty():
                mids.append(acknowledged.get())
            db.execute("BEGIN")
            db.executemany("DELETE FROM reading WHERE id = ?", [(published.pop(mid),) for mid in mids])
            db.execute("COMMIT")
        except queue.Empty:
            pass


if __name__ == "__main__":
    main(*sys.argv[1:])

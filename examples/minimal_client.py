#!/usr/bin/env python3
"""A client of meshim on one page, from docs/protocol.md: `Rules` is its section 16, the rest moves bytes.

    minimal_client.py REST NAME PASSWORD STATE

Lines on stdin: `add NAME`, `send NAME TEXT`, `quit`.  Lines on stdout: events, in JSON.  STATE: an SQLite file.
"""

import json
import secrets
import sqlite3
import sys
import time
import urllib.request
from base64 import b64decode, urlsafe_b64decode
from contextlib import suppress
from functools import partial
from http.client import HTTPException
from threading import Thread
from urllib.parse import quote

import msgpack
import zmq
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

GREET, WELCOME, DATA, ACK, PING, PONG, CLOSE, RESET, CHANGED = 1, 2, 3, 4, 5, 6, 7, 8, 11
SUBMIT, DELIVERY, TEXT, RECEIPT, BASE, EPHEMERAL, BAD_TOKEN, QUIT, WINDOW = 1, 2, 1, 3, 4, 128, 4, 16, 32
STATES, GONE = {1: "delivered", 2: "sent", 3: "rejected"}, zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED
STOP = (2, 5, 12, "bad_credentials", "device_in_use")  # VERSION, IMPERSONATION, LOGGED_OUT: stop, and tell the user
pack, unpack = msgpack.packb, partial(msgpack.unpackb, strict_map_key=False, use_list=False)
AWAY, chance = (OSError, HTTPException, ValueError), secrets.SystemRandom()  # REST is away, or its answer is none
LATER = ("bad_token", "slow_down", "busy", "backend_unavailable", "internal", "wrong_master_key")  # of REST: try again
DELIVERED, STORED, REJECTED, BUSY = 1, 2, 3, 4


class Rules:
    """What a client remembers and decides.  `disk` is a dictionary; its changes are written in one transaction."""

    def __init__(self, disk):
        self.disk = disk
        # (to, seq) of what is unsettled -> [when to submit it again, seconds until the next time]
        self.again = {key[1:]: [0, 4] for key in sorted(key for key in disk if key[0] == "outbox")}
        # (stream, seq) of what is held back -> when it arrived
        self.since = {(key[1:], seq): 0 for key in disk if key[0] == "in" for seq in disk[key]["held"]}

    def connected(self, now):
        """After each Welcome everything unsettled is submitted again, and the clocks of all gaps start anew."""
        self.again = {key: [now, 4] for key in self.again}
        self.since = dict.fromkeys(self.since, now)

    def unsettled(self, to):
        return [seq for each, seq in self.again if each == to]

    def full(self, to):  # recipients hold back no more: make no message until an earlier one is settled
        next_seq = self.disk.get(("out", to), {"next": 1})["next"]
        return next_seq - min(self.unsettled(to), default=next_seq) >= 256

    def make(self, to, seal, now):
        """Make a message: `seal(seq, base)` returns its envelope.  Commit, and then submit what is due."""
        out, unsettled = self.disk.get(("out", to), {"next": 1, "cookie": b""}), self.unsettled(to)
        out |= {} if unsettled else {"fate": None, "mixed": False}  # a run begins
        seq = out["next"]
        self.disk["out", to] = out | {"next": seq + 1}
        self.disk["outbox", to, seq] = seal(seq, min(unsettled, default=seq))
        self.again[to, seq] = [now, 4]
        return seq

    def due(self, now):
        """Return (envelope, cookie) of each message to submit now, in the order in which they were made."""
        due = {key: [now + pause, min(2 * pause, 15)] for key, (at, pause) in self.again.items() if at <= now}
        self.again |= due
        return [(self.disk["outbox", *key], self.disk["out", key[0]]["cookie"]) for key in due]

    def outcome(self, now, to, first, last, status, final=False, audience=0, cookie=b"", code=0, *_):
        """Take in an Outcome; return the seqs that it settles, and whether a BASE is owed."""
        settled = [seq for seq in self.unsettled(to) if first <= seq <= last]
        if status in (DELIVERED, STORED) and ("out", to) in self.disk:
            self.disk["out", to] = self.disk["out", to] | {"cookie": cookie}
        if status == BUSY:  # 17, QUEUE_FULL: there is room when the friend has read
            self.again |= {(to, seq): [now + (10 if code == 17 else 0.5), self.again[to, seq][1]] for seq in settled}
        if status != REJECTED and not (final and status in (DELIVERED, STORED)):
            return [], False
        for seq in settled:
            out, fate = self.disk["out", to], 0 if status == REJECTED else audience
            self.disk["out", to] = out | {"fate": fate, "mixed": out["mixed"] or out["fate"] not in (None, fate)}
            del self.disk["outbox", to, seq], self.again[to, seq]
        return settled, bool(settled) and self.disk["out", to]["mixed"] and not self.unsettled(to)

    def deliver(self, stream, seq, base, message, now):
        """Take in a message of a stream; return the messages to show now, in order."""
        order = self.disk.get(("in", *stream), {"watermark": 1, "holes": (), "held": {}})
        for first, last in order["holes"]:
            if first <= seq <= last:  # it was given up: show it, late
                around = [hole for hole in ((first, seq - 1), (seq + 1, last)) if hole[0] <= hole[1]]
                holes = sorted({*order["holes"], *around} - {(first, last)})
                self.disk["in", *stream] = order | {"holes": tuple(holes)}
                return [message]
        if seq < order["watermark"] or seq in order["held"]:
            return []  # a duplicate
        self.disk["in", *stream] = order | {"held": order["held"] | {seq: message}}
        self.since[stream, seq] = now
        shown, held = self.release(stream, base), self.disk["in", *stream]["held"]
        return shown + (self.release(stream, min(held) + 1) if len(held) > 1024 else [])

    def release(self, stream, below):
        """Nothing waits for what is missing below `below`: show what is held there, and what follows without a gap."""
        order, shown = self.disk["in", *stream], []
        watermark, holes, held = order["watermark"], order["holes"], dict(order["held"])
        for seq in [*sorted(held), below]:
            if seq > watermark and watermark < below:
                holes += ((watermark, min(seq, below) - 1),)
                watermark = min(seq, below)
            if seq == watermark and seq in held:
                shown.append(held.pop(seq))
                del self.since[stream, seq]
                watermark += 1
        self.disk["in", *stream] = {"watermark": watermark, "holes": holes[-64:], "held": held}
        return shown

    def tick(self, now):
        """Give up each gap that has held a message back for 30 s; return the messages to show now."""
        late = [key for key, since in self.since.items() if now - since >= 30]
        return [message for stream, seq in late for message in self.release(stream, seq + 1)]


class Disk(dict):  # lives in an SQLite file: SQLite begins a transaction at the first change after a commit
    def __init__(self, path):
        self.database = sqlite3.connect(path)
        self.database.executescript("PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;")
        self.database.execute("CREATE TABLE IF NOT EXISTS disk (key BLOB PRIMARY KEY, value BLOB)")
        super().__init__((unpack(key), unpack(value)) for key, value in self.database.execute("SELECT * FROM disk"))

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        self.database.execute("REPLACE INTO disk VALUES (?, ?)", (pack(key), pack(value)))

    def __delitem__(self, key):
        super().__delitem__(key)
        self.database.execute("DELETE FROM disk WHERE key = ?", (pack(key),))


class Client:
    def __init__(self, api, name, password, state):
        self.api, self.password, self.disk, self.untried = api, password, Disk(state), None
        self.me = {"name": name, "epoch": secrets.randbits(53)} | self.disk.get(("me",), {})
        self.rules, self.names, self.keys, self.lines, self.quitting, self.wait = Rules(self.disk), {}, {}, [], False, 0
        if self.me["name"] != name:
            sys.exit(f"{state} is the device of {self.me['name']}: give {name} a file of its own.")

    def rest(self, method, path, body=None, patience=2):
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.me.get('token')}"}
        request = urllib.request.Request(self.api + path, body and json.dumps(body).encode(), headers, method=method)
        self.wait = time.monotonic() + 1  # until then nothing is asked again that can wait, unless this is answered
        try:
            with urllib.request.urlopen(request, timeout=patience) as answer:
                self.wait = 0
                return json.load(answer)
        except urllib.error.HTTPError as error:
            self.wait = time.monotonic() + min(int(error.headers.get("Retry-After", 1)), 300) * chance.uniform(1, 1.5)
            raise ConnectionError(json.load(error)["code"]) from None

    def connector(self):  # those that are known, five at most; then REST is asked, which answers all who wait
        known = self.disk.get(("connectors",), ())
        if not (known if self.untried is None else self.untried) and time.monotonic() > self.wait:
            self.untried = None  # if REST does not answer, those that are known are tried again
            named = self.rest("GET", "/v1/connectors", patience=15)["connectors"]
            known = self.disk["connectors",] = [(c["endpoint"], c["key"].encode()) for c in named if c["endpoint"]]
        self.untried = self.untried or chance.sample(known, len(known))[:5]
        return self.untried.pop()

    def relations(self):
        with suppress(*AWAY):  # while REST is away the known ones have to do
            found = self.rest("GET", "/v1/relations")["relations"]
            self.names |= {peer["user_id"]: peer["name"] for peer in [self.me, *(each["peer"] for each in found)]}
            self.keys |= {r["peer"]["user_id"]: {k["version"]: b64decode(k["key"]) for k in r["keys"]} for r in found}
            self.emit("relations", states={each["peer"]["name"]: each["state"] for each in found})
            return True

    def compose(self, to, kind, content):  # into the outbox; returns seq and id.  TEXT is sealed with the newest key
        def seal(seq, base):
            body = nonce + AESGCM(key).encrypt(nonce, content, pack([*front, seq, *back])) if version else content
            return pack([*front, seq, base, *back, body])

        front = [1, secrets.token_bytes(16), self.me["user_id"], self.me["device_id"], self.me["epoch"], to]
        version, key = max(self.keys[to[1]].items()) if kind == TEXT else (0, b"")
        back, nonce = [kind, version, time.time_ns() // 1_000_000], secrets.token_bytes(12)
        return self.rules.make(to, seal, time.monotonic()), front[1].hex()

    def received(self, now, data, stored=False, *_):  # what this changes is on disk before its frame is acknowledged
        kind = EPHEMERAL
        with suppress(Exception):  # connectors check no element behind those that they know: a friend's may be anything
            _, _, user, device, epoch, to, seq, base, kind, *_, body = unpack(data)[:12]
        if kind >= EPHEMERAL or device == self.me["device_id"]:
            return
        if kind == RECEIPT:  # applied at once; it takes its place in the order, too
            with suppress(Exception):
                what, *about, ranges = unpack(body)[:5]
                if about == [self.me["device_id"], self.me["epoch"], (1, user, 0)]:
                    self.emit("read" if what == 2 else "delivered", to=user, ranges=ranges)
        for what in (1, 2) if kind == TEXT and stored and user != self.me["user_id"] else ():
            self.disk["owed", what, user, device, epoch] = True
        self.queue(self.rules.deliver((user, device, epoch, to[1]), seq, base, data, now))

    def hand_over(self):  # after a crash between showing a message and noting that, it comes once more
        for key in sorted(key for key in self.disk if key[0] == "new"):
            fields, text = unpack(self.disk[key]), None
            (user, device, epoch, to, seq), version, body = fields[2:7], fields[9], fields[11]
            peer = to[1] if user == self.me["user_id"] else user
            if version not in self.keys.get(peer, {}) and not self.relations():
                return  # a new friendship has a new key: while REST is away, this message and the next ones wait
            with suppress(Exception):  # no key, not sealed with it, or no Text in it
                aes, authenticated = AESGCM(self.keys[peer][version]), pack([*fields[:5], to[:3], seq, *fields[8:11]])
                text = "" + unpack(aes.decrypt(body[:12], body[12:], authenticated))[0]
            self.emit("message", n=key[1], id=fields[1].hex(), sender=user, device=device, to=to[1], seq=seq, text=text)
            del self.disk[key]
            if user != self.me["user_id"]:
                self.disk["owed", 2, user, device, epoch] = True
        for _, what, user, device, epoch in [key for key in self.disk if key[0] == "owed"]:  # 1 DELIVERED, 2 READ
            order, to = self.disk["in", user, device, epoch, self.me["user_id"]], (1, user, 0)
            starts, ends = [(0, 0), *order["holes"]], [*order["holes"], (order["watermark"], 0)]
            shown = [(low[1] + 1, up[0] - 1) for low, up in zip(starts, ends, strict=True) if up[0] - low[1] > 1]
            ranges = shown if what == 2 else [(seq, seq) for seq in sorted(order["held"])]
            if not self.rules.full(to):
                del self.disk["owed", what, user, device, epoch]
                if ranges:  # READ names everything that was shown: nothing below the watermark waits here any more
                    self.compose(to, RECEIPT, pack([what, device, epoch, (1, self.me["user_id"], 0), ranges]))

    def queue(self, messages):  # for the application, on disk
        for data in (data for data in messages if unpack(data)[8] == TEXT):
            self.disk["shown",] = self.disk.get(("shown",), 0) + 1
            self.disk["new", self.disk["shown",]] = data

    def run(self):
        pause, code = 0.05, 0 if "token" in self.me else BAD_TOKEN
        while self.rules.again or not self.quitting:
            started, refused, code, me = time.monotonic(), code in (BAD_TOKEN, "bad_token"), 0, self.me
            try:
                if refused:
                    account = {"device": "minimal", "password": self.password, "takeover": "token" not in me}
                    new = self.rest("POST", "/v1/login", account | {k: me.get(k) for k in ("name", "epoch", "proof")})
                    self.me = self.disk["me",] = me | {k: new[k] for k in ("token", "proof", "user_id", "device_id")}
                if self.names or self.relations():
                    self.connection(*self.connector())
            except (*AWAY, LookupError, zmq.Again) as error:  # a ConnectionError has a code
                code = error.args[0] if type(error) is ConnectionError else 0
                self.emit("offline", code=code, reason=str(error))
            if code in STOP:
                sys.exit(f"the mesh ended the session: {code}")
            pause = 0.05 if time.monotonic() - started > 10 else min(2 * pause, 5)
            time.sleep(pause * chance.uniform(0.5, 1.5))
            self.commands()

    def connection(self, endpoint, key):
        with zmq.Context.instance().socket(zmq.DEALER) as socket, socket.get_monitor_socket(GONE) as monitor:
            socket.linger, socket.reconnect_ivl, socket.tcp_keepalive = 200, 1_000_000_000, 1
            if key:
                socket.curve_publickey, socket.curve_secretkey, socket.curve_serverkey = *zmq.curve_keypair(), key
            socket.connect(endpoint)
            self.talk(socket, monitor, secrets.randbits(53))

    def talk(self, socket, monitor, link):  # noqa: C901 (it is the whole connection)
        send = lambda *frame: socket.send(pack(frame), zmq.NOBLOCK)  # noqa: E731
        sent = acked = received = told = window = 0
        items, silence_s, heard = [], 5, time.monotonic()
        send(GREET, 1, urlsafe_b64decode(self.me["token"] + "="), self.me["epoch"], link, WINDOW)
        while True:
            frames, gone = [], monitor.poll(0)
            while socket.poll(0 if frames else 50):
                frames.append(unpack(socket.recv()))
            now = time.monotonic()
            for kind, *fields in frames:
                heard = now
                if kind == CLOSE and fields[0] in (link, 0):
                    raise ConnectionError(fields[1])
                if fields[1 if kind == WELCOME else 0] != link:
                    continue
                if kind == WELCOME:
                    window, silence_s = min(fields[5], WINDOW), fields[9] / 1000
                    self.rules.connected(now)
                    self.emit("online", device=self.me["device_id"])
                elif kind == PING:
                    send(PONG, link)
                elif kind in (DATA, ACK) and (ack := fields[2 if kind == DATA else 1]) > acked:
                    acked, progress = ack, now
                if kind in (WELCOME, CHANGED):  # after Welcome: changes from before it are not told
                    self.relations()
                if kind == RESET or not window or acked > sent or (kind == DATA and fields[1] != received + 1):
                    raise ConnectionError(0)
                if kind == DATA:
                    received += 1
                    for number, *item in fields[3]:
                        (self.received if number == DELIVERY else self.outcome)(now, *item)
            if (gone and not frames) or now - heard > silence_s or (sent > acked and now - progress > 4):
                raise ConnectionError(0)
            if window:
                self.commands()
                self.queue(self.rules.tick(now))
                self.disk.database.commit()  # before anything is acknowledged, submitted or shown
                items, progress = items or self.rules.due(now), progress if sent > acked else now
                while items and sent - acked < window:
                    send(DATA, link, sent := sent + 1, told := received, [[SUBMIT, *items.pop(0)]])
                if told < received:
                    send(ACK, link, told := received)
                if self.quitting and not self.rules.again and not any(key[0] == "new" for key in self.disk):
                    return send(CLOSE, link, QUIT)
                if now > self.wait:
                    self.hand_over()

    def outcome(self, now, to, first, last, status, final=False, audience=0, cookie=b"", code=0, *_):
        settled, owes_base = self.rules.outcome(now, to, first, last, status, final, audience, cookie, code)
        if settled or status == DELIVERED:
            self.emit(STATES[status], to=to[1], ranges=[(first, last)], final=final, code=code)
        if owes_base:
            self.compose(to, BASE, b"")

    def commands(self):  # in their order: one that needs REST, or room, waits, with those behind it
        while self.lines and (self.names or self.lines[0] == "quit") and time.monotonic() > self.wait:
            word, name, text, *_ = [*self.lines[0].split(" ", 2), "", ""]
            to = (1, next((user for user, each in self.names.items() if each == name), 0), 0)
            try:
                if word == "add":
                    self.rest("POST", f"/v1/relations/{quote(name, safe='')}")
                    self.relations()
                elif word == "send" and self.keys.get(to[1]):
                    if self.rules.full(to):
                        return
                    seq, envelope = self.compose(to, TEXT, pack([text]))
                    self.disk.database.commit()
                    self.emit("queued", to=name, seq=seq, id=envelope)
                elif self.lines[0] != "quit":
                    raise ConnectionError("not_friends" if word == "send" else "unknown_command")
            except AWAY as error:
                if type(error) is not ConnectionError or error.args[0] in LATER:
                    return
                self.emit("refused", command=self.lines[0], code=error.args[0])
            self.quitting |= self.lines.pop(0) == "quit"

    def emit(self, event, **fields):
        names = {key: self.names.get(fields[key], fields[key]) for key in ("sender", "to") if key in fields}
        print(json.dumps({"event": event, **fields, **names}), flush=True)


if __name__ == "__main__":
    try:
        client = Client(*sys.argv[1:]) if len(sys.argv) == 5 else sys.exit(__doc__)
        Thread(target=client.lines.extend, args=[(line.strip("\n") for line in sys.stdin)], daemon=True).start()
        client.run()
    except (sqlite3.Error, KeyboardInterrupt) as error:
        sys.exit(str(error) or 130)

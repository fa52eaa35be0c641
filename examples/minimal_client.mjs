// A client of meshim on one page, from docs/protocol.md: WebSocket, fetch, WebCrypto, @msgpack/msgpack.
//   node minimal_client.mjs REST NAME PASSWORD STATE      the commands and events of minimal_client.py
// In a page: new Client(rest, name, password, disk, event => show(event)).run(), with the disk of minimal_page.html.
// Node 20 needs --experimental-websocket.  `Rules` is section 16 of docs/protocol.md; the rest moves bytes.
import { decode, decodeMulti, encode } from "@msgpack/msgpack";

const GREET = 1, WELCOME = 2, DATA = 3, ACK = 4, PING = 5, PONG = 6, CLOSE = 7, RESET = 8, CHANGED = 11;
const SUBMIT = 1, DELIVERY = 2, TEXT = 1, RECEIPT = 3, BASE = 4, EPHEMERAL = 128, BAD_TOKEN = 4, QUIT = 16;
const DELIVERED = 1, STORED = 2, REJECTED = 3, BUSY = 4, STATES = { 1: "delivered", 2: "sent", 3: "rejected" };
const STOP = [2, 5, 12, "bad_credentials", "device_in_use", "disk"]; // VERSION, IMPERSONATION, LOGGED_OUT
const LATER = ["bad_token", "slow_down", "busy", "backend_unavailable", "internal", "wrong_master_key"]; // try again
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const id = (...parts) => JSON.stringify(parts), EMPTY = new Uint8Array(), WINDOW = 32, FULL = 17;
const attempt = (read) => { try { return read(); } catch { return []; } }; // what a friend wrote may be anything
const hex = (each) => Array.from(each, (byte) => byte.toString(16).padStart(2, "0")).join("");
const bytes = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));

export class Rules { // what a client remembers and decides; all changes of `disk` are written in one transaction
  constructor(disk) {
    this.disk = disk;
    this.again = new Map(); // [to, seq] of what is unsettled -> [when to submit it again, ms until the next time]
    this.since = new Map(); // [stream, seq] of each message that is held back -> when it arrived
    const outbox = [...disk.keys()].map((key) => JSON.parse(key)).filter(([room]) => room === "outbox");
    for (const [, to, seq] of outbox.sort((a, b) => a[2] - b[2])) this.again.set(id(to, seq), [0, 4000]);
    for (const [stream, { held }] of disk) for (const [seq] of held ?? []) this.since.set(id(stream, seq), 0);
  }
  connected(now) { // everything unsettled is submitted again, and the clocks of all gaps start anew
    for (const key of this.again.keys()) this.again.set(key, [now, 4000]);
    for (const key of this.since.keys()) this.since.set(key, now);
  }
  unsettled(to) { // `to` of messages is JSON, as in the keys of `disk`
    return [...this.again.keys()].map((key) => JSON.parse(key)).filter(([each]) => each === to).map(([, seq]) => seq);
  }
  out(to) { return this.disk.get(id("out", to)) ?? { next: 1, cookie: EMPTY, fate: null, mixed: false }; }
  full(to) { // recipients hold back no more: no message may be made until an earlier one is settled
    return this.out(to).next - Math.min(this.out(to).next, ...this.unsettled(to)) >= 256;
  }
  async make(to, seal, now) { // one at a time: `seal(seq, base)` is asynchronous, and a seq must not be taken in vain
    const unsettled = this.unsettled(to), { next: seq } = this.out(to);
    const envelope = await seal(seq, Math.min(seq, ...unsettled));
    const run = this.unsettled(to).length ? {} : { fate: null, mixed: false };
    this.disk.set(id("out", to), { ...this.out(to), ...run, next: seq + 1 });
    this.disk.set(id("outbox", to, seq), envelope);
    this.again.set(id(to, seq), [now, 4000]);
    return seq;
  }
  due(now) { // [envelope, cookie] of each message to submit now, in the order in which they were made
    const due = [...this.again].filter(([, [at]]) => at <= now);
    for (const [key, [, pause]] of due) this.again.set(key, [now + pause, Math.min(2 * pause, 15000)]);
    return due.map(([key]) => [this.disk.get(id("outbox", ...JSON.parse(key))), this.out(JSON.parse(key)[0]).cookie]);
  }
  outcome(now, to, first, last, status, final = false, audience = 0, cookie = EMPTY, code = 0) { // -> [seqs, owes BASE]
    const settled = this.unsettled(to).filter((seq) => first <= seq && seq <= last);
    if (status === DELIVERED || status === STORED) this.disk.set(id("out", to), { ...this.out(to), cookie });
    if (status === BUSY) for (const seq of settled) this.again.get(id(to, seq))[0] = now + (code === FULL ? 1e4 : 500);
    if (status !== REJECTED && !(final && [DELIVERED, STORED].includes(status))) return [[], false];
    for (const seq of settled) {
      const out = this.out(to), fate = status === REJECTED ? 0 : audience;
      const mixed = out.mixed || (out.fate !== null && out.fate !== fate);
      this.disk.set(id("out", to), { ...out, fate, mixed });
      this.disk.delete(id("outbox", to, seq));
      this.again.delete(id(to, seq));
    }
    return [settled, settled.length > 0 && this.out(to).mixed && !this.unsettled(to).length];
  }
  deliver(stream, seq, base, message, now) { // -> the messages to show now, in order
    const order = this.disk.get(stream) ?? { watermark: 1, holes: [], held: [] };
    const hole = order.holes.find(([first, last]) => first <= seq && seq <= last);
    if (hole) { // it was given up: show it, late
      const around = [[hole[0], seq - 1], [seq + 1, hole[1]]].filter(([first, last]) => first <= last);
      const holes = [...order.holes.filter((each) => each !== hole), ...around].sort((a, b) => a[0] - b[0]);
      this.disk.set(stream, { ...order, holes });
      return [message];
    }
    if (seq < order.watermark || order.held.some(([held]) => held === seq)) return []; // a duplicate
    this.disk.set(stream, { ...order, held: [...order.held, [seq, message]].sort((a, b) => a[0] - b[0]) });
    this.since.set(id(stream, seq), now);
    const shown = this.release(stream, base), { held } = this.disk.get(stream);
    return held.length > 1024 ? [...shown, ...this.release(stream, held[0][0] + 1)] : shown;
  }
  release(stream, below) { // nothing waits for what is missing below `below`
    let { watermark, holes, held } = this.disk.get(stream);
    const shown = [], waiting = [];
    for (const [seq, message] of [...held, [below, null]].sort((a, b) => a[0] - b[0])) {
      if (seq > watermark && watermark < below) {
        holes = [...holes, [watermark, Math.min(seq, below) - 1]];
        watermark = Math.min(seq, below);
      }
      if (message === null) continue;
      if (seq !== watermark) { waiting.push([seq, message]); continue; }
      shown.push(message);
      this.since.delete(id(stream, seq));
      watermark += 1;
    }
    this.disk.set(stream, { watermark, holes: holes.slice(-64), held: waiting });
    return shown;
  }
  tick(now) { // give up each gap that has held a message back for 30 s
    const late = [...this.since].filter(([, since]) => now - since >= 30000).map(([key]) => JSON.parse(key));
    return late.flatMap(([stream, seq]) => this.release(stream, seq + 1));
  }
}

export class Disk extends Map { // a Map that knows what changed; `write(changes)` puts all of it on disk, or nothing
  constructor(entries, write) {
    super();
    for (const [key, value] of entries) super.set(key, value);
    Object.assign(this, { changed: new Set(), last: Promise.resolve(), write });
  }
  set(key, value) { this.changed?.add(key); return super.set(key, value); }
  delete(key) { this.changed.add(key); return super.delete(key); }
  async commit() {
    if (!this.changed.size) return;
    const changes = [...this.changed].map((key) => [key, super.get(key)]);
    const failed = (error) => { throw Object.assign(error, { ended: "disk" }); };
    await (this.last = this.last.then(() => this.write(changes)).catch(failed)); // after a failure none is written
    this.changed.clear();
  }
}

export async function fileDisk(path) { // Node: a journal of changes; what is torn at its end was never acknowledged
  const { openSync, fdatasyncSync, readFileSync, truncateSync, writeFileSync } = await import("node:fs");
  const entries = new Map(), file = openSync(path, "a"), journal = readFileSync(path);
  let whole = 0;
  try {
    for (const changes of decodeMulti(journal)) {
      whole += encode(changes).length;
      for (const [key, value] of changes) value === null ? entries.delete(key) : entries.set(key, value);
    }
  } catch (error) { if (!(error instanceof RangeError)) throw error; }
  truncateSync(path, whole);
  return new Disk(entries, (changes) => { writeFileSync(file, encode(changes)); fdatasyncSync(file); });
}

const final = (error) => { if (!error.ended || LATER.includes(error.ended)) throw error; return error.ended; };
const lost = (ended) => Object.assign(new Error(`ended with code ${ended}`), { ended }); // by a Close or by REST

export class Client {
  constructor(api, name, password, disk, emit) {
    Object.assign(this, { api, name, password, disk, emit, rules: new Rules(disk), lines: [], untried: null, ask: 0 });
    [this.users, this.keys] = [new Map(), new Map()]; // a name's user, and the keys of a user, by their versions
    const [high, low] = crypto.getRandomValues(new Uint32Array(2));
    this.me = disk.get(id("me")) ?? { name, epoch: (high >>> 11) * 2 ** 32 + low };
    if (this.me.name !== name) throw new Error(`this state is a device of ${this.me.name}: ${name} needs another`);
  }
  async rest(method, path, body, patience = 2000) {
    const headers = { "Content-Type": "application/json", Authorization: `Bearer ${this.me.token}` };
    const signal = AbortSignal.timeout(patience);
    const answer = await fetch(this.api + path, { method, headers, signal, body: body && JSON.stringify(body) });
    this.ask = Date.now() + (Math.min(answer.headers.get("Retry-After"), 300) || 0) * (1000 + 500 * Math.random());
    if (!answer.ok) throw lost((await answer.json()).code);
    return answer.json();
  }
  async connector() { // those that are known, five at most; then REST is asked, which answers all who wait
    let known = this.disk.get(id("connectors")) ?? [];
    if (!(this.untried ?? known).length && Date.now() >= this.ask) {
      this.untried = null; // if REST does not answer, those that are known are tried again
      const { connectors } = await this.rest("GET", "/v1/connectors", undefined, 15000);
      this.disk.set(id("connectors"), known = connectors.map(({ url }) => url).filter(Boolean));
    }
    if (!this.untried?.length) this.untried = known.toSorted(() => Math.random() - 0.5).slice(0, 5);
    return this.untried.pop() ?? Promise.reject(lost("no_connector"));
  }
  async login() {
    const { name, password, me: { epoch, token, proof } } = this, takeover = !token;
    const answer = await this.rest("POST", "/v1/login", { name, password, device: "web", epoch, takeover, proof });
    this.me = { name, epoch, token: answer.token, user: answer.user_id, device: answer.device_id, proof: answer.proof };
    await this.disk.set(id("me"), this.me).commit();
  }
  async relations() {
    const { relations } = await this.rest("GET", "/v1/relations");
    this.users.set(this.name, this.me.user);
    for (const { peer, keys } of relations) {
      this.users.set(peer.name, peer.user_id);
      this.keys.set(peer.user_id, new Map(keys.map(({ version, key }) => [version, bytes(key)])));
    }
    this.emit({ event: "relations", states: Object.fromEntries(relations.map((r) => [r.peer.name, r.state])) });
  }
  named(user) { return [...this.users].find(([, each]) => each === user)?.[0] ?? user; }
  aes(key) { return crypto.subtle.importKey("raw", key, "AES-GCM", false, ["encrypt", "decrypt"]); }
  compose(to, kind, content) { // -> its [seq, id], in the outbox; TEXT is sealed with the newest key of the recipient
    const { user, device, epoch } = this.me;
    const front = [1, crypto.getRandomValues(new Uint8Array(16)), user, device, epoch, to];
    const version = kind === TEXT ? Math.max(...this.keys.get(to[1]).keys()) : 0, back = [kind, version, Date.now()];
    return this.rules.make(id(...to), async (seq, base) => {
      if (!version) return encode([...front, seq, base, ...back, content]);
      const iv = crypto.getRandomValues(new Uint8Array(12)), additionalData = encode([...front, seq, ...back]);
      const key = await this.aes(this.keys.get(to[1]).get(version));
      const sealed = await crypto.subtle.encrypt({ name: "AES-GCM", iv, additionalData }, key, content);
      return encode([...front, seq, base, ...back, new Uint8Array([...iv, ...new Uint8Array(sealed)])]);
    }, Date.now()).then((seq) => [seq, hex(front[1])]);
  }
  received(data, stored = false) { // what this changes is on disk before its frame is acknowledged
    const [, , user, device, epoch, to, seq, base, kind = EPHEMERAL, , , body] = attempt(() => decode(data));
    if (kind >= EPHEMERAL || device === this.me.device) return;
    if (kind === RECEIPT) attempt(() => { // applied at once; it takes its place in the order, too
      const [what, toDevice, toEpoch, to, ranges] = decode(body), event = what === 2 ? "read" : "delivered";
      if (id(toDevice, toEpoch, to) === id(this.me.device, this.me.epoch, [1, user, 0]))
        this.emit({ event, to: this.named(user), ranges });
    });
    if (kind === TEXT && stored) for (const what of [1, 2]) this.owe(what, user, device, epoch);
    this.queue(this.rules.deliver(id("in", user, device, epoch, to[1]), seq, base, data, Date.now()));
  }
  queue(shown) { // for the application, on disk
    for (const data of shown.filter((each) => decode(each)[8] === TEXT)) {
      this.disk.set(id("shown"), (this.disk.get(id("shown")) ?? 0) + 1);
      this.disk.set(id("new", this.disk.get(id("shown"))), data);
    }
  }
  async handOver() { // show what is on disk, and note that it was shown: after a crash in between it comes once more
    const numbers = this.keysOf("new").map((key) => JSON.parse(key)[1]);
    for (const n of numbers.sort((a, b) => a - b)) {
      const fields = decode(this.disk.get(id("new", n))), [, , user, device, epoch, to, seq, , kind, version] = fields;
      const peer = user === this.me.user ? to[1] : user, body = fields[11];
      if (!this.keys.get(peer)?.has(version)) await this.relations(); // while REST is away, this and the next wait
      const additionalData = encode([...fields.slice(0, 5), to.slice(0, 3), seq, ...fields.slice(8, 11)]);
      const opened = this.aes(this.keys.get(peer)?.get(version) ?? new Uint8Array(32)).then((key) =>
        crypto.subtle.decrypt({ name: "AES-GCM", iv: body.subarray(0, 12), additionalData }, key, body.subarray(12)));
      const [text] = await opened.then((plain) => attempt(() => [decode(new Uint8Array(plain))[0]]), () => []);
      const about = { id: hex(fields[1]), sender: this.named(user), device, to: this.named(to[1]), seq };
      this.emit({ event: "message", n, ...about, text: typeof text === "string" ? text : null });
      this.disk.delete(id("new", n));
      this.owe(2, user, device, epoch);
    }
    await this.pay();
  }
  owe(what, user, ...more) { if (user !== this.me.user) this.disk.set(id("owed", what, user, ...more), true); }
  async pay() { // 1 DELIVERED, or 2 READ, of all that was shown: nothing below the watermark waits for the application
    for (const key of this.keysOf("owed")) {
      const [, what, user, device, epoch] = JSON.parse(key), to = [1, user, 0], mine = [1, this.me.user, 0];
      const { holes, watermark, held } = this.disk.get(id("in", user, device, epoch, this.me.user));
      const ends = [...holes.map(([first]) => first), watermark], starts = [0, ...holes.map(([, last]) => last)];
      const shown = starts.map((start, n) => [start + 1, ends[n] - 1]).filter(([first, last]) => first <= last);
      const ranges = what === 2 ? shown : held.map(([seq]) => [seq, seq]);
      if (this.rules.full(id(...to))) continue;
      if (ranges.length) await this.compose(to, RECEIPT, encode([what, device, epoch, mine, ranges]));
      this.disk.delete(key);
    }
  }
  keysOf(room) { return [...this.disk.keys()].filter((key) => JSON.parse(key)[0] === room); }
  async run() {
    for (let pause = 50, code = this.me.token ? 0 : BAD_TOKEN; this.rules.again.size || !this.quitting; ) {
      const started = Date.now();
      try {
        if ([BAD_TOKEN, "bad_token"].includes(code)) await this.login();
        code = 0;
        if (!this.users.size) await this.relations();
        await this.commands();
        await this.connection(await this.connector());
      } catch (error) {
        code = error.ended ?? code;
        this.emit({ event: "offline", code, reason: error.message });
        if (STOP.includes(code)) throw error;
      }
      pause = Date.now() - started > 10000 ? 50 : Math.min(2 * pause, 5000);
      await sleep(pause * (0.5 + Math.random()));
    }
  }
  async connection(url) {
    const socket = new WebSocket(url, "meshim.1"), frames = [];
    socket.binaryType = "arraybuffer";
    let wake = () => {};
    socket.onmessage = ({ data }) => { frames.push(new Uint8Array(data)); wake(); };
    socket.onclose = () => { frames.push(null); wake(); };
    await new Promise((opened) => { socket.onopen = opened; socket.onerror = opened; });
    const wait = (ms) => frames.length ? null : Promise.race([new Promise((done) => { wake = done; }), sleep(ms)]);
    await this.talk((...frame) => socket.send(encode(frame)), frames, wait).finally(() => socket.close());
  }
  async talk(send, frames, wait) {
    const link = Math.floor(Math.random() * 2 ** 53);
    const token = bytes(this.me.token.replaceAll("-", "+").replaceAll("_", "/"));
    let [sent, acked, received, told, window, silence, heard, progress] = [0, 0, 0, 0, 0, 5000, Date.now(), 0];
    let items = [], retry = 0;
    const waits = ({ message: reason }) => { retry = Date.now() + 1000; this.emit({ event: "waiting", reason }); };
    send(GREET, 1, token, this.me.epoch, link, WINDOW);
    for (;;) {
      await wait(50);
      const now = Date.now();
      for (const frame of frames.splice(0)) {
        heard = now;
        if (!frame) throw lost(0);
        const [kind, ...fields] = decode(frame); // what does not decode ends the link
        if (kind === CLOSE && [link, 0].includes(fields[0])) throw lost(fields[1]);
        if (fields[kind === WELCOME ? 1 : 0] !== link) continue;
        if (kind === WELCOME) {
          [window, silence] = [Math.min(fields[5], WINDOW), fields[9]];
          this.rules.connected(now);
          this.emit({ event: "online", device: this.me.device });
        }
        if (kind === PING) send(PONG, link);
        if (kind === WELCOME || kind === CHANGED) await this.relations().catch(waits); // Welcome: none is told before
        const ack = kind === DATA ? fields[2] : kind === ACK ? fields[1] : 0;
        if (ack > acked) [acked, progress] = [ack, now];
        if (kind === RESET || !window || acked > sent || (kind === DATA && fields[1] !== received + 1)) throw lost(0);
        if (kind !== DATA) continue;
        received += 1;
        for (const [number, ...item] of fields[3])
          number === DELIVERY ? this.received(...item) : await this.outcome(now, ...item);
      }
      if (now - heard > silence || (sent > acked && now - progress > 4000)) throw lost(0);
      if (!window) continue;
      if (now > retry) await this.commands().catch(waits);
      this.queue(this.rules.tick(now));
      await this.disk.commit(); // before anything is acknowledged, submitted or shown
      if (!items.length) items = this.rules.due(now);
      if (sent === acked) progress = now;
      for (; items.length && sent - acked < window; told = received)
        send(DATA, link, ++sent, received, [[SUBMIT, ...items.shift()]]);
      if (told < received) send(ACK, link, (told = received));
      if (this.quitting && !this.rules.again.size && !this.keysOf("new").length) return send(CLOSE, link, QUIT);
      if (now > retry) await this.handOver().catch(waits);
    }
  }
  async outcome(now, to, first, last, status, final = false, ...more) {
    const [settled, owesBase] = this.rules.outcome(now, id(...to), first, last, status, final, ...more);
    if (settled.length || status === DELIVERED)
      this.emit({ event: STATES[status], to: this.named(to[1]), ranges: [[first, last]], final, code: more[2] ?? 0 });
    if (owesBase) await this.compose(to, BASE, EMPTY);
  }
  async commands() { // in their order: one that needs REST, or room, waits, with those behind it
    for (; this.lines.length && (this.users.size || this.lines[0] === "quit"); this.lines.shift()) {
      const [, word, name, text] = /^(\S*) ?(\S*) ?(.*)$/s.exec(this.lines[0]), to = [1, this.users.get(name), 0];
      let refused = null;
      if (this.lines[0] === "quit") this.quitting = true;
      else if (word === "add") refused = await this.rest("POST", `/v1/relations/${encodeURIComponent(name)}`)
        .then(() => this.relations()).catch(final);
      else if (word === "send" && this.keys.get(to[1])?.size) {
        if (this.rules.full(id(...to))) return;
        const [seq, envelope] = await this.compose(to, TEXT, encode([text]));
        await this.disk.commit();
        this.emit({ event: "queued", to: name, seq, id: envelope });
      } else refused = word === "send" ? "not_friends" : "unknown_command";
      if (refused) this.emit({ event: "refused", command: this.lines[0], code: refused });
    }
  }
}

if (globalThis.process?.argv[1]?.endsWith("minimal_client.mjs")) {
  const [api, name, password, state] = process.argv.slice(2), { createInterface } = await import("node:readline");
  const leave = (words) => { console.error(words); process.exit(1); };
  if (!state) leave("node minimal_client.mjs REST NAME PASSWORD STATE");
  if (!globalThis.WebSocket) leave("This version of Node needs the option --experimental-websocket.");
  try {
    const client = new Client(api, name, password, await fileDisk(state), (each) => console.log(JSON.stringify(each)));
    createInterface({ input: process.stdin }).on("line", (line) => client.lines.push(line));
    await client.run().then(() => process.exit(0));
  } catch (error) { leave(error.constructor === Error ? error.message : error.stack); }
}

"""What is taken out of the minimal clients alone, to show that a chaos run notices: by name and language, old and new.

The mesh and the client library are whole in these runs.
"""

from scripts.harness.clients.minimal_example import Language

REPLACEMENTS: dict[str, dict[Language, dict[str, str]]] = {
    "minimal-dedup": {
        "python": {"return []  # a duplicate": "return [message]"},
        "javascript": {"return []; // a duplicate": "return [message];"},
    },
    "minimal-resend": {  # every message is submitted once
        "python": {
            "self.again = {key: [now, 4] for key in self.again}": "pass",
            "[now + pause, min(2 * pause, 15)]": "[now + 1e9, 4]",
        },
        "javascript": {
            "for (const key of this.again.keys()) this.again.set(key, [now, 4000]);": "",
            "[now + pause, Math.min(2 * pause, 15000)]": "[now + 1e12, pause]",
        },
    },
    "minimal-disk": {  # frames are acknowledged before what they brought is on disk
        "python": {"    self.disk.database.commit()  # before anything": "    pass  # before anything"},
        "javascript": {"await this.disk.commit(); // before anything": "// before anything"},
    },
}

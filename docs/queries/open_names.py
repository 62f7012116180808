#!/usr/bin/env python3
"""Opens the names behind pseudonyms: open_names.py KEY.key.json < rows, each `sealed` in hexadecimal on a line of its own."""
# SPDX-License-Identifier: Apache-2.0
import base64, hashlib, hmac, json, sys

from nacl.public import PrivateKey, SealedBox

with open(sys.argv[1]) as file:
    key = json.load(file)
box = SealedBox(PrivateKey(base64.b64decode(key["secret"])))
search = base64.b64decode(key["search"])


def short(*parts):
    return base64.b32encode(hmac.new(search, b"".join(parts), hashlib.sha256).digest()[:16]).decode().rstrip("=").lower()


for line in sys.stdin:
    text = box.decrypt(bytes.fromhex(line))
    person = json.loads(text)
    name = (person["user"]["issuer"].encode(), b"\0", person["user"]["subject"].encode())
    person["pseudonym"] = f"p1.{key['owner']}.{key['period']}.{short(*name)}"
    key_id = hashlib.sha256(base64.b64decode(key["public"])).hexdigest()[:16]
    person["withheld"] = key_id + "." + short(b"\0sealed\0", text)
    print(json.dumps(person))
